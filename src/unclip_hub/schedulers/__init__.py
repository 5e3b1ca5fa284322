"""Schedulers that diffusers lacks. Every scheduler of diffusers works as well."""

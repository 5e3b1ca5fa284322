"""The networks: diffusers' `ModelMixin`s with diffusers' parameter names, so that Karlo's weights load as they are."""

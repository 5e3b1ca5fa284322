"""Pipelines: the components and verbs of unCLIP (``base``), then one flat ``__call__`` per task."""

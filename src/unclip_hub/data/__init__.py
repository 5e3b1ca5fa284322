"""Captioned images in: folders, shards, cached embeddings, and the procedural scenes of the bundled model."""

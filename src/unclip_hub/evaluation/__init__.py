"""Numbers from iterables of pictures, embeddings and texts; nothing here ever sees a pipeline."""

"""The Hub side: names in an index, pushing, model cards. Takes folders and plain data, never a model."""

"""Schema of the models app."""

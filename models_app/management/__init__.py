"""Management code of the models app."""

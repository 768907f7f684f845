"""Generation: its rows and verbs (Django) and, in `engine/`, the pipelines (torch)."""

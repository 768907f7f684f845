"""Trainings: their rows and verbs (Django) and, in `trainer/`, the training itself (torch)."""

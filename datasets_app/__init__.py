"""Datasets: people's pictures and their captions, and how files become them."""

"""Measurements: each runs ours and a peer side by side and prints ratios. None is a test."""

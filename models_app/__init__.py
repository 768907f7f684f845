"""Models: what the site can generate with and train on, and everything about their files."""

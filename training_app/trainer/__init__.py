"""The trainer: a child process that teaches a base model a LoRA from a few pictures.

Plain values in, files and JSON lines out. It knows no Django, no database and no user;
``config`` and ``request`` know no torch either, so the site may import them.
"""

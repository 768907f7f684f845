"""Studio: foundations (settings, jobs, events, storage) and composition (urls, asgi, commands)."""

__version__ = "0.1.0"

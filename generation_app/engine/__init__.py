"""The generator: plain values in, PNG files and JSON lines out.

It runs as a resident child of a worker (``python -m generation_app.engine``), keeps pipelines and
adapters warm between requests, and knows neither Django nor a database. ``request``,
``vocabulary``, ``errors`` and ``metadata`` are free of torch, so that the site checks a request
with the very code that serves it.
"""

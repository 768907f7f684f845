"""The starter model: its committed weights and everything that made them.

``weights/`` is a diffusers folder of a genuine, tiny Stable Diffusion pipeline.
``python -m models_app.starter.build`` draws its world and trains it again from
nothing. ``world``, ``wide_world``, ``creatures``, ``glyphs`` and ``judge`` need
only Pillow and numpy; torch is imported by the training modules alone, and
nothing in this package imports Django.
"""

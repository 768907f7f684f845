"""The foundation app: users, tokens, workers and what every other app shares."""

from __future__ import annotations

from django.apps import AppConfig


class StudioConfig(AppConfig):
    """Registers the package under the short label its tables carry."""

    name = "studio_project"
    label = "studio"
    verbose_name = "Studio"

    def ready(self) -> None:
        """Let the API's document know how callers prove who they are."""
        from studio_project import schema  # noqa: F401  (registers its extensions)

"""Datasets as a Django app."""

from __future__ import annotations

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class DatasetsAppConfig(AppConfig):
    """The app that keeps people's pictures and their captions."""

    name = "datasets_app"
    verbose_name = _("Datasets")

    def ready(self) -> None:
        """Let the sweeper remove the files of deleted pictures and files that no row names."""
        from datasets_app.models import DatasetImage
        from datasets_app.removal import collect_garbage
        from studio_project.jobs import register_chore, register_file_references

        register_file_references("datasets", DatasetImage.objects.needed_keys)
        register_chore("collected", collect_garbage)

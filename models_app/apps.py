"""Models as a Django app."""

from __future__ import annotations

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class ModelsAppConfig(AppConfig):
    """The app that knows base models and what was trained from them; it minds their files."""

    name = "models_app"
    verbose_name = _("Models")

    def ready(self) -> None:
        """Tell the sweeper which files are needed, now that the models are loaded."""
        from models_app.models import DiffusionModel
        from studio_project.jobs import register_file_references

        register_file_references("models", DiffusionModel.objects.needed_keys)

"""Generation as a Django app: what it tells the foundations and the apps below it."""

from __future__ import annotations

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class GenerationAppConfig(AppConfig):
    """Registers the generation queue, and what models ask of the generator."""

    name = "generation_app"
    verbose_name = _("Generation")

    def ready(self) -> None:
        """Register what needs the models to be loaded."""
        from generation_app import actors, files, inputs, services
        from generation_app.models import GenerationJob
        from models_app.services import register_model_listener
        from models_app.texts import register_settings_check
        from studio_project.jobs import (
            register_chore,
            register_file_references,
            register_job_class,
        )

        register_job_class(GenerationJob, actors.ring_doorbell)
        register_file_references("jobs", files.needed_keys)
        register_file_references("inputs", files.needed_inputs)
        register_chore("input_pictures", inputs.remove_unused)
        register_model_listener(services.model_changed)
        register_settings_check(services.check_default_settings)

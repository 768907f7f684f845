"""Training as a Django app: what it tells the foundations and the apps below it."""

from __future__ import annotations

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class TrainingAppConfig(AppConfig):
    """Registers the training queue, the guard of pictures in use and the model listener."""

    name = "training_app"
    verbose_name = _("Training")

    def ready(self) -> None:
        """Register what needs the models to be loaded."""
        from datasets_app.services import register_image_guard
        from models_app.services import register_model_listener
        from studio_project.jobs import register_chore, register_file_references, register_job_class
        from training_app import actors, files, guards
        from training_app.models import TrainingJob

        register_job_class(TrainingJob, actors.ring_doorbell)
        register_file_references("jobs", files.needed_keys)
        register_chore("checkpoints", files.drop_expired)
        register_chore("measurements", actors.look_after_measurements)
        register_image_guard(guards.images_in_use)
        register_model_listener(guards.model_changed)

"""What trainings answer to the apps below them: which pictures they read, and who lost a model."""

from __future__ import annotations

from collections.abc import Collection

from models_app.models import DiffusionModel
from models_app.withdrawal import fail_waiting
from training_app.models import TrainingJob

Status = TrainingJob.Status


def images_in_use(image_ids: Collection[int]) -> set[int]:
    """Return which of these dataset pictures a live training still reads."""
    wanted, needed = set(image_ids), set()
    live = TrainingJob.objects.filter(status__in=[Status.QUEUED, Status.RUNNING, Status.PAUSED])
    for manifest in live.values_list("manifest", flat=True):
        needed |= wanted & {image["id"] for image in manifest.get("images", ())}
    return needed


def model_changed(model: DiffusionModel, what: str) -> None:
    """End the queued trainings whose base their owner may no longer use.

    One that has begun goes on: its inputs were frozen, and base models are only deactivated.
    """
    waiting = TrainingJob.objects.filter(
        base_model=model, status=Status.QUEUED, started_at=None
    ).select_related("owner")
    fail_waiting(waiting, model)

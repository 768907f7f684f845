"""What trainings answer to the apps below them: which pictures they read, and who lost a model."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from models_app.models import DiffusionModel
from studio_project import jobs
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
    _fail_unavailable(waiting, model)


def _fail_unavailable(waiting: Iterable[TrainingJob], model: DiffusionModel) -> None:
    """Fail each queued job whose owner cannot use the model."""
    for job in waiting:
        if DiffusionModel.objects.usable_by(job.owner).filter(pk=model.pk).exists():
            continue
        try:
            job.move(
                Status.FAILED,
                from_=[Status.QUEUED],
                error_code="model_unavailable",
                error_params={"model": model.name},
            )
        except jobs.InvalidTransition:
            continue  # claimed or canceled meanwhile

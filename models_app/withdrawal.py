"""What becomes of waiting jobs when somebody loses the use of a model."""

from __future__ import annotations

from collections.abc import Iterable

from models_app.models import DiffusionModel
from studio_project.jobs import InvalidTransition, Job


def fail_waiting(waiting: Iterable[Job], model: DiffusionModel) -> None:
    """Fail each queued job whose owner can no longer use the model.

    Args:
        waiting: Queued jobs that need it, of any kind.
        model: As it is now.
    """
    for job in waiting:
        if DiffusionModel.objects.usable_by(job.owner).filter(pk=model.pk).exists():
            continue
        try:
            job.move(
                Job.Status.FAILED,
                from_=[Job.Status.QUEUED],
                error_code="model_unavailable",
                # As it is written, not in the language of whoever takes the model away.
                error_params={"model": str(model)},
            )
        except InvalidTransition:
            continue  # claimed or canceled meanwhile

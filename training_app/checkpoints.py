"""What people ask of a checkpoint: to make a model of it, and to train on from it."""

from __future__ import annotations

from django.utils.translation import gettext as _

from models_app.models import DiffusionModel
from models_app.services import unavailable
from studio_project import jobs, storage
from studio_project.api import Problem
from studio_project.models import User
from training_app.models import TrainingCheckpoint, TrainingJob
from training_app.registration import register_choice


def register_checkpoint(
    user: User, job: TrainingJob, checkpoint_id: int, title: str = ""
) -> tuple[DiffusionModel, bool]:
    """Make a model of a checkpoint; a second time answers with the same one.

    Args:
        user: The owner of the training.
        job: The training; it may still be under way.
        checkpoint_id: Which of its checkpoints.
        title: Of the model; empty for the training's title and the step.

    Returns:
        The model, and whether it is new.

    Raises:
        Problem: `not_found`, `checkpoint_gone`, `model_deleted`, `model_unavailable`,
            `storage_full` or `disk_full`.
    """
    checkpoint = job.checkpoints.select_related("model").filter(pk=checkpoint_id).first()
    if checkpoint is None:
        raise Problem("not_found", _("This training has no such checkpoint."), status=404)
    if checkpoint.model is not None:
        return _living(checkpoint.model), False
    base = _usable_base(user, job)
    if not checkpoint.prefix:
        raise gone(checkpoint)
    jobs.require_stored_room(user)
    storage.require_free_space(checkpoint.size_bytes)
    words = {"title": job.title[:180], "step": checkpoint.step}
    try:
        model, is_new = register_choice(
            checkpoint, base, title.strip() or _("%(title)s, step %(step)s") % words
        )
    except (FileNotFoundError, TrainingCheckpoint.DoesNotExist) as error:
        raise gone(checkpoint) from error
    return _living(model), is_new


def _living(model: DiffusionModel) -> DiffusionModel:
    if model.deleted_at is not None:
        raise Problem(
            "model_deleted",
            _("A model was made of this checkpoint before, and it was deleted."),
            status=409,
        )
    return model


def _usable_base(user: User, job: TrainingJob) -> DiffusionModel:
    base = job.base_model
    frozen = job.manifest.get("base", {}).get("sha256")
    if (
        base is None
        or base.sha256 != frozen
        or not DiffusionModel.objects.visible_to(user).filter(pk=base.pk).exists()
    ):
        message = _("The base model “%(name)s” is not there any more as it was trained.") % {
            "name": job.base_model_name
        }
        raise Problem("model_unavailable", message, status=409)
    if not DiffusionModel.objects.usable_by(user).filter(pk=base.pk).exists():
        raise unavailable(base)
    return base


def gone(checkpoint: TrainingCheckpoint) -> Problem:
    """Return the problem that says that a checkpoint's files are not there any more."""
    return Problem(
        "checkpoint_gone",
        _("The files of the checkpoint at step %(step)s are gone.") % {"step": checkpoint.step},
        status=409,
        hint=_("Checkpoints are kept for two weeks after a training has ended."),
    )

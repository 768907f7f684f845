"""What people ask of a checkpoint: to make a model of it, and to train on from it."""

from __future__ import annotations

from typing import Any

from django.db import transaction
from django.utils.translation import gettext as _

from datasets_app.models import Dataset, DatasetImage
from models_app.models import DiffusionModel
from models_app.services import unavailable
from studio_project import jobs, storage
from studio_project.api import Problem
from studio_project.models import User
from training_app.models import TrainingCheckpoint, TrainingJob
from training_app.registration import register_choice
from training_app.services import WORKING_BYTES, next_in_family
from training_app.texts import config_sentence
from training_app.trainer.config import TrainingConfig
from training_app.trainer.fields import ConfigError

Status = TrainingJob.Status


# --- choosing -------------------------------------------------------------------------------------
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


# --- training on ----------------------------------------------------------------------------------
def extend_training(user: User, job: TrainingJob, additional_steps: int) -> TrainingJob:
    """Queue a new training that goes on where a completed one ended, exactly as it would have.

    Its pictures, captions and settings are those that were frozen then; only its steps are more.

    Raises:
        Problem: `not_completed`, `checkpoint_gone`, `dataset_not_found`, `images_gone`,
            `model_unavailable`, `disk_full`, `storage_full`, `active_jobs_limit`, or `invalid`
            with `additional_steps`.
    """
    if job.status != Status.COMPLETED:
        message = _("Only a training that is completed can be extended.")
        raise Problem("not_completed", message, status=409)
    state = job.checkpoints_for_resume().first()
    if state is None:
        raise gone(TrainingCheckpoint(job=job, step=job.step))
    base = _usable_base(user, job)
    _require_pictures(user, job)
    steps = state.step + additional_steps
    resolved = _longer(job.manifest["config"], steps)
    storage.require_free_space(WORKING_BYTES)
    jobs.require_stored_room(user)
    before = int(job.manifest["config"]["max_train_steps"])
    with transaction.atomic():
        jobs.enforce_active_cap(user)
        longer = TrainingJob.objects.create(
            owner=user,
            dataset=job.dataset,
            dataset_name=job.dataset_name,
            base_model=base,
            base_model_name=job.base_model_name,
            type=job.type,
            title=f"{job.title[:180]} +{additional_steps}",
            family_version=next_in_family(user, job.dataset, base),
            config={**job.config, "max_train_steps": steps},
            resolved_config=resolved,
            manifest={**job.manifest, "config": resolved, "extends": before},
            resumed_from=job,
            step=state.step,
            total_steps=steps,
            progress=state.step / steps,
            required_bytes=job.required_bytes,
            required_devices=job.required_devices,
        )
        longer.move(Status.QUEUED, from_=[Status.PENDING])
    return longer


def _longer(config: dict[str, Any], steps: int) -> dict[str, Any]:
    try:
        return TrainingConfig.from_dict({**config, "max_train_steps": steps}).as_dict()
    except ConfigError as error:
        sentence = config_sentence(error)
        name = "additional_steps" if error.field == "max_train_steps" else error.field
        raise Problem("invalid", f"{name}: {sentence}", fields={name: [sentence]}) from error


def _require_pictures(user: User, job: TrainingJob) -> None:
    """Refuse if the frozen pictures are no longer all there, or no longer the user's to see."""
    if not Dataset.objects.visible_to(user).filter(pk=job.dataset_id).exists():
        message = _("The dataset “%(name)s” is not there any more.") % {"name": job.dataset_name}
        raise Problem("dataset_not_found", message, status=404)
    wanted = [image["id"] for image in job.manifest["images"]]
    missing = len(wanted) - DatasetImage.objects.live().filter(pk__in=wanted).count()
    if missing:
        raise Problem(
            "images_gone",
            _("Of its pictures, %(count)d were deleted since; it cannot go on without them.")
            % {"count": missing},
            status=409,
            hint=_("Train anew on the pictures that are there."),
        )


# --- what both ask --------------------------------------------------------------------------------
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

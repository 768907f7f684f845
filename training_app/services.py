"""What people ask of a training: create, start, cancel, rename, delete.

Each verb checks, writes and rings; none of them trains. Problems are raised as
`studio_project.api.Problem`, which the API and the pages both show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from django.db import transaction
from django.db.models import F, Max
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from datasets_app.models import Dataset, DatasetImage
from models_app.models import DiffusionModel
from studio_project import events, jobs, storage
from studio_project.api import Problem
from studio_project.models import User
from training_app import estimates, files
from training_app.actors import ring_measuring
from training_app.chosen import check_method, find_base, find_dataset, resolve_settings
from training_app.manifest import freeze, passes_range, repeats_of, without_words
from training_app.models import TrainingJob
from training_app.trainer.config import TrainingConfig

NAMED_PICTURES = 5
# Space a small training writes at least: two checkpoints, samples and the weights.
WORKING_BYTES = 64 * 1024**2
Status = TrainingJob.Status


# --- create ---------------------------------------------------------------------------------------
def create_training(
    user: User,
    *,
    dataset_id: int,
    base_model_id: int,
    type: str = TrainingJob.Type.LORA,
    title: str = "",
    config: Mapping[str, Any] | None = None,
) -> TrainingJob:
    """Make a training that waits to be started.

    Args:
        user: Whose training it is; both ends must be visible to them.
        dataset_id: The pictures.
        base_model_id: The model to start from.
        type: What is trained.
        title: Free text; empty for the dataset's name with the family's next number.
        config: What the user chose; everything else is resolved.

    Raises:
        Problem: `dataset_not_found`, `model_not_found`, `model_unavailable`, `model_incompatible`,
            `method_unavailable`, or `invalid` with the fields that are wrong.
    """
    dataset = find_dataset(user, dataset_id)
    base = find_base(user, base_model_id)
    check_method(type, base)
    asked = dict(config or {})
    resolved = resolve_settings(asked, type, base, dataset.num_items)
    with transaction.atomic():
        number = next_in_family(user, dataset, base)
        return TrainingJob.objects.create(
            owner=user,
            dataset=dataset,
            dataset_name=dataset.name,
            base_model=base,
            base_model_name=base.shown_title,
            type=type,
            title=title.strip() or f"{dataset.name[:190]} v{number}",
            family_version=number,
            config=asked,
            resolved_config=resolved.as_dict(),
            total_steps=resolved.max_train_steps,
        )


def next_in_family(user: User, dataset: Dataset | None, base: DiffusionModel) -> int:
    """Number the trainings of one dataset on one base; each user counts their own."""
    family = TrainingJob.objects.filter(owner=user, dataset=dataset, base_model=base)
    return (family.aggregate(last=Max("family_version"))["last"] or 0) + 1


def estimate_training(
    user: User,
    *,
    dataset_id: int,
    base_model_id: int,
    type: str = TrainingJob.Type.LORA,
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Say what a training would come to, without making it.

    If nothing is known of its cost on the devices here, a worker is asked to measure it; asking
    again tells whether it has.

    Returns:
        The members of `TrainingEstimateSerializer`.

    Raises:
        Problem: As `create_training`.
    """
    dataset = find_dataset(user, dataset_id)
    base = find_base(user, base_model_id)
    check_method(type, base)
    resolved = resolve_settings(dict(config or {}), type, base, dataset.num_items)
    values = resolved.as_dict()
    cost = estimates.cost_of(base, values, type)
    if cost.source != "measured" and estimates.want(user, base, values, type):
        cost = replace(cost, is_coming=True)
        transaction.on_commit(ring_measuring, robust=True)
    return {
        "total_steps": resolved.max_train_steps,
        "num_images": dataset.num_items,
        "passes_per_image": round(resolved.passes_per_image(dataset.num_items), 1),
        "passes_range": passes_range(resolved, repeats_of(None, dataset)),
        "effective_learning_rate": resolved.effective_learning_rate,
        "config": values,
        **cost.as_dict(resolved.max_train_steps),
    }


# --- start ----------------------------------------------------------------------------------------
def start_training(user: User, job: TrainingJob) -> TrainingJob:
    """Freeze the inputs of a pending training and put it into the queue.

    Starting one that is already on its way changes nothing.

    Raises:
        Problem: `already_final`, `dataset_not_found`, `dataset_empty`, `captions_missing`,
            `model_unavailable`, `disk_full`, `storage_full`, `active_jobs_limit`, or `invalid`.
    """
    if job.status != Status.PENDING:
        return _already_started(job)
    dataset = find_dataset(user, job.dataset_id)
    base = find_base(user, job.base_model_id)
    check_method(job.type, base)
    images = list(DatasetImage.objects.live().filter(dataset=dataset).order_by("pk"))
    if not images:
        message = _("The dataset “%(name)s” has no pictures.") % {"name": dataset.name}
        raise Problem(
            "dataset_empty",
            message,
            fields={"dataset_id": [message]},
            hint=_("Add some pictures, then start again."),
        )
    config = resolve_settings(job.config, job.type, base, len(images))
    _require_words(images, config)
    storage.require_free_space(WORKING_BYTES)
    jobs.require_stored_room(user)
    resolved = config.as_dict()
    manifest = freeze(job, base, images, resolved)
    # What it needs decides what it is said to wait for.
    job.required_bytes = estimates.required_bytes(base, resolved, job.type)
    job.required_devices = config.num_devices
    try:
        with transaction.atomic():
            jobs.enforce_active_cap(user)
            job.move(
                Status.QUEUED,
                from_=[Status.PENDING],
                manifest=manifest,
                resolved_config=resolved,
                total_steps=config.max_train_steps,
                required_bytes=job.required_bytes,
                required_devices=job.required_devices,
            )
    except jobs.InvalidTransition:
        job.refresh_from_db()
        return _already_started(job)
    return job


def _already_started(job: TrainingJob) -> TrainingJob:
    if job.is_final:
        raise Problem(
            "already_final",
            _("This training has ended and cannot be started again."),
            status=409,
            hint=_("Create a new one."),
        )
    return job


def _require_words(images: list[DatasetImage], config: TrainingConfig) -> None:
    silent = without_words(images, config.instance_prompt or config.trigger_word)
    if not silent:
        return
    named = ", ".join(image.original_name for image in silent[:NAMED_PICTURES])
    more = "…" if len(silent) > NAMED_PICTURES else ""
    raise Problem(
        "captions_missing",
        ngettext(
            "%(count)d picture has no caption and there is no trigger word: %(names)s",
            "%(count)d pictures have no caption and there is no trigger word: %(names)s",
            len(silent),
        )
        % {"count": len(silent), "names": named + more},
        hint=_("Write captions for them, or give the training a trigger word."),
        images=[{"id": image.pk, "name": image.original_name} for image in silent],
    )


# --- change ---------------------------------------------------------------------------------------
def cancel_training(user: User, job: TrainingJob) -> TrainingJob:
    """Ask a training to end; one that has ended already stays as it is."""
    job.request_cancel()
    job.refresh_from_db()
    if job.status == Status.CANCELED:
        files.drop_checkpoints(job)
    return job


def pause_training(user: User, job: TrainingJob) -> TrainingJob:
    """Ask a running training to write a checkpoint and leave the device.

    Raises:
        Problem: `not_running`.
    """
    try:
        job.request_stop("pause")
    except jobs.InvalidTransition as error:
        message = _("Only a running training can be paused.")
        raise Problem("not_running", message, status=409) from error
    return job


def resume_training(user: User, job: TrainingJob) -> TrainingJob:
    """Put a paused training back into the queue; it goes on from its checkpoint.

    Raises:
        Problem: `not_paused` or `active_jobs_limit`.
    """
    try:
        with transaction.atomic():
            jobs.enforce_active_cap(user)
            job.move(Status.QUEUED, from_=[Status.PAUSED])
    except jobs.InvalidTransition as error:
        message = _("Only a paused training can be resumed.")
        raise Problem("not_paused", message, status=409) from error
    return job


def stop_training(user: User, job: TrainingJob) -> TrainingJob:
    """End a training early and keep what it has learned: its model is exported and registered.

    One that runs ends at its next step. One that waits or pauses goes to a worker once more, which
    exports its last checkpoint.

    Raises:
        Problem: `nothing_to_keep`, `not_running` or `active_jobs_limit`.
    """
    for _attempt in range(3):
        try:
            _ask_to_keep(user, job)
            return job
        except jobs.InvalidTransition:
            job.refresh_from_db()  # it moved on meanwhile: look again
    raise Problem("not_running", _("This training is not under way."), status=409)


def _ask_to_keep(user: User, job: TrainingJob) -> None:
    if job.is_final or job.status == Status.PENDING:
        raise Problem("not_running", _("This training is not under way."), status=409)
    if job.status == Status.RUNNING:
        job.request_stop("keep")
        return
    if not job.checkpoint_step():
        raise Problem(
            "nothing_to_keep",
            _("This training has learned nothing yet, so there is nothing to keep."),
            status=409,
            hint=_("Cancel it instead."),
        )
    if job.status == Status.QUEUED:
        job.request_stop("keep", status=Status.QUEUED)
        return
    with transaction.atomic():
        jobs.enforce_active_cap(user)
        job.move(Status.QUEUED, from_=[Status.PAUSED], stop_requested="keep")


def rename_training(user: User, job: TrainingJob, title: str) -> TrainingJob:
    """Give a training another title.

    Raises:
        Problem: `not_found` (404) if it was deleted meanwhile.
    """
    with transaction.atomic():
        rows = TrainingJob.objects.filter(pk=job.pk)
        if not rows.update(title=title.strip(), version=F("version") + 1):
            raise Problem("not_found", _("There is nothing here that you may see."), status=404)
        job.refresh_from_db()
        job.announce()
    return job


def delete_training(user: User, job: TrainingJob) -> None:
    """Remove a training with its checkpoints, samples and metrics; its model stays.

    Raises:
        Problem: `job_active` while it waits, runs or pauses; `job_needed` while one that extends it
            does.
    """
    with transaction.atomic():
        row = TrainingJob.objects.select_for_update().filter(pk=job.pk).first()
        if row is None:
            return
        if not (row.is_final or row.status == Status.PENDING):
            raise Problem(
                "job_active",
                _("This training is still on its way."),
                status=409,
                hint=_("Cancel it first."),
            )
        if row.continuations.live().exists():
            raise Problem(
                "job_needed",
                _("Another training goes on from this one and is still on its way."),
                status=409,
            )
        keys = files.keys_of(row)
        row.delete()
        events.publish(_deletion(job), users=[job.owner_id])
        transaction.on_commit(lambda: files.remove(keys), robust=True)


def _deletion(job: TrainingJob) -> dict[str, Any]:
    return {
        "type": f"{job.noun}.deleted",
        "id": str(job.pk),
        "version": job.version + 1,
        "ts": timezone.now().isoformat(),
    }

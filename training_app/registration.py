"""A finished training becomes a model, exactly once.

The weights go to the storage first, under a key of their own; the model's row, the checkpoint's
link to it and the job's completion are one transaction under the worker's claim. Whoever has lost
the claim registers nothing and takes its file back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.db import transaction
from django.utils import timezone

from models_app.inspection import sha256_of
from models_app.models import DiffusionModel, trained_model_name
from models_app.thumbnails import make_thumbnail
from studio_project import storage
from training_app import files
from training_app.models import TrainingCheckpoint, TrainingJob, TrainingNote


def register_model(job: TrainingJob, weights: Path) -> DiffusionModel:
    """Store the weights, make the model's row and complete the job.

    Args:
        job: The claimed job, whose trainer has finished.
        weights: The exported file.

    Raises:
        InvalidTransition: The claim is lost; nothing was registered.
        Problem: `disk_full`; nothing was registered.
    """
    base = job.base_model
    if base is None:
        raise FileNotFoundError(f"the base model of {job.pk} is gone")
    keys = [storage.new_key("models", job.pk, suffix=".safetensors")]
    try:
        size_bytes = storage.save(keys[0], weights)
        entry = {"name": weights.name, "size": size_bytes, "sha256": sha256_of(weights)}
        job.renew_lease()
        thumbnail_key = _store_thumbnail(job)
        keys.append(thumbnail_key)
        with transaction.atomic():
            model = DiffusionModel.objects.register(
                **_fields(job, base),
                path=keys[0],
                files=[entry],
                size_bytes=size_bytes,
                sha256=entry["sha256"],
                thumbnail_key=thumbnail_key,
            )
            _link(job, model, entry)
    except BaseException:
        files.remove(key for key in keys if key)
        raise
    return model


def _fields(job: TrainingJob, base: DiffusionModel) -> dict[str, Any]:
    word = str(job.resolved_config.get("trigger_word") or "")
    return {
        "name": trained_model_name(job.pk),
        "title": job.title,
        "type": job.type,
        "owner": job.owner,
        "base_model": base,
        "trigger_words": [word] if word else [],
        "source_dataset_name": job.dataset_name,
    }


def _store_thumbnail(job: TrainingJob) -> str:
    """Copy the newest sample as the model's picture; without samples there is none."""
    sample = job.samples.order_by("-step", "index").first()
    if sample is None:
        return ""
    with storage.open_key(sample.key) as handle:
        thumbnail = make_thumbnail(handle)
    key = storage.new_key("models", job.pk, "thumbs", suffix=".webp")
    storage.save(key, thumbnail)
    return key


def _link(job: TrainingJob, model: DiffusionModel, entry: dict[str, Any]) -> None:
    """Complete the job under its claim, and tie model, checkpoint and job together."""
    job.move(
        TrainingJob.Status.COMPLETED,
        from_=[TrainingJob.Status.RUNNING],
        epoch=job.epoch,
        output_model=model,
    )
    TrainingCheckpoint.objects.update_or_create(
        job=job,
        epoch=job.epoch,
        step=job.step,
        defaults={"model": model},
        create_defaults={
            "model": model,
            "files": [entry],
            "size_bytes": entry["size"],
            "created_at": timezone.now(),
        },
    )
    TrainingNote.objects.create(job=job, code="registered", params={"model": model.title})

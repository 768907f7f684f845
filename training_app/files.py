"""Which stored files belong to a training, how long they stay, and how they go.

The last two checkpoints of a training that is under way are whole, to go on from. Of the others
only the weights are kept, for choosing. When it has ended, the last one stays whole for two weeks,
so that it can be extended exactly; then all of them go. The weights of a model that came out belong
to the model and are not named here.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath
from typing import Any

from django.db.models import Q
from django.utils import timezone

from studio_project import storage
from studio_project.jobs import Job
from training_app.models import KEPT_AFTER_END, TrainingCheckpoint, TrainingJob, TrainingSample

logger = logging.getLogger(__name__)

# What a checkpoint holds that a model can be made of: adapters in one file, or whole networks.
ADAPTER = "adapter.safetensors"
NETWORKS = ("unet/", "text_encoder/", "text_encoder_2/")
EXPIRED_AT_ONCE = 100


def checkpoint_keys(checkpoint: TrainingCheckpoint) -> list[str]:
    """Return the keys of a resume state."""
    if not checkpoint.prefix:
        return []
    return [f"{checkpoint.prefix}/{entry['name']}" for entry in checkpoint.files]


def keys_of(job: TrainingJob) -> list[str]:
    """Return the keys of everything a training stored for itself."""
    keys = [key for checkpoint in job.checkpoints.all() for key in checkpoint_keys(checkpoint)]
    for sample in job.samples.all():
        keys += [sample.key, sample.thumbnail_key]
    return [key for key in keys if key]


def needed_keys(keys: Collection[str]) -> set[str]:
    """Return which of these keys, all under `jobs/`, a row still needs."""
    wanted = set(keys)
    samples = TrainingSample.objects.filter(Q(key__in=wanted) | Q(thumbnail_key__in=wanted))
    named = {key for pair in samples.values_list("key", "thumbnail_key") for key in pair}
    prefixes = {str(folder) for key in wanted for folder in PurePosixPath(key).parents}
    for checkpoint in TrainingCheckpoint.objects.filter(prefix__in=prefixes):
        named.update(checkpoint_keys(checkpoint))
    return wanted & named


def weights_of(checkpoint: TrainingCheckpoint) -> list[dict[str, Any]]:
    """Return the files of a checkpoint that a model can be made of, without its prefix."""
    return [
        entry
        for entry in checkpoint.files
        if entry["name"] == ADAPTER or entry["name"].startswith(NETWORKS)
    ]


def thin_checkpoints(job: TrainingJob, *, keep: int) -> None:
    """Leave the newest checkpoints whole, of the others the weights, and those for choosing only.

    Args:
        job: Whose checkpoints.
        keep: How many stay whole.
    """
    for checkpoint in list(job.checkpoints_for_resume()[keep:]):
        if checkpoint.model_id is None and not job.is_choice(checkpoint.step):
            drop_checkpoint(checkpoint)
            continue
        weights = weights_of(checkpoint)
        keys = set(checkpoint_keys(checkpoint))
        TrainingCheckpoint.objects.filter(pk=checkpoint.pk).update(
            files=weights, size_bytes=sum(entry["size"] for entry in weights), is_whole=False
        )
        remove(keys - {f"{checkpoint.prefix}/{entry['name']}" for entry in weights})


def drop_checkpoints(job: TrainingJob) -> None:
    """Remove the files of all checkpoints of a training."""
    for checkpoint in job.checkpoints.exclude(prefix=""):
        drop_checkpoint(checkpoint)


def drop_checkpoint(checkpoint: TrainingCheckpoint) -> None:
    """Remove a checkpoint's files; one that a model was made of keeps its row."""
    keys = checkpoint_keys(checkpoint)
    rows = TrainingCheckpoint.objects.filter(pk=checkpoint.pk)
    if not rows.filter(model=None).delete()[0]:
        rows.update(prefix="", files=[], is_whole=False)
    remove(keys)


def drop_expired() -> int:
    """Remove the checkpoints that nobody chose in time, and those of canceled trainings.

    One that a later training still has to begin from stays.

    Returns:
        How many went.
    """
    ended = Q(job__finished_at__lt=timezone.now() - KEPT_AFTER_END, job__status__in=Job.FINAL)
    canceled = Q(job__status=TrainingJob.Status.CANCELED)
    rows = TrainingCheckpoint.objects.exclude(prefix="").filter(ended | canceled)
    needed = TrainingJob.objects.live().filter(resumed_from__isnull=False)
    expired = list(rows.exclude(job__in=needed.values("resumed_from"))[:EXPIRED_AT_ONCE])
    for checkpoint in expired:
        drop_checkpoint(checkpoint)
    return len(expired)


def remove(keys: Iterable[str]) -> None:
    """Remove files that no row names any more.

    One that cannot be removed now is logged and left to the sweep of unreferenced files.
    """
    for key in keys:
        try:
            storage.delete(key)
        except OSError:
            logger.warning("could not remove %s", key, exc_info=True)

"""Which stored files belong to a training, and how they go.

The weights of the model that came out belong to the model and are not named here.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

from django.db.models import Q

from studio_project import storage
from training_app.models import TrainingCheckpoint, TrainingJob, TrainingSample

logger = logging.getLogger(__name__)


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
    prefixes = {key.rpartition("/")[0] for key in wanted}
    for checkpoint in TrainingCheckpoint.objects.filter(prefix__in=prefixes):
        named.update(checkpoint_keys(checkpoint))
    return wanted & named


def drop_checkpoints(job: TrainingJob, *, keep: int = 0) -> None:
    """Remove the resume states but the newest; one that a model was made of keeps its row."""
    for checkpoint in list(job.checkpoints_for_resume()[keep:]):
        keys = checkpoint_keys(checkpoint)
        if checkpoint.model_id is None:
            checkpoint.delete()
        else:
            TrainingCheckpoint.objects.filter(pk=checkpoint.pk).update(prefix="", files=[])
        remove(keys)


def remove(keys: Iterable[str]) -> None:
    """Remove files that no row names any more.

    One that cannot be removed now is logged and left to the sweep of unreferenced files.
    """
    for key in keys:
        try:
            storage.delete(key)
        except OSError:
            logger.warning("could not remove %s", key, exc_info=True)

"""Removes for good what people have deleted, once no training needs it.

Deleting only marks rows. A training that starts reads the living pictures and commits its list of
them a moment later, so a file goes only after a grace period, and only if no list names it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from datetime import timedelta

from django.utils import timezone

from datasets_app.models import Dataset, DatasetImage
from studio_project import storage

logger = logging.getLogger(__name__)

GRACE_SECONDS = 60.0
BATCH = 200

# Given ids of pictures, returns those that are still needed.
ImageGuard = Callable[[Collection[int]], Collection[int]]
_guards: list[ImageGuard] = []


def register_image_guard(guard: ImageGuard) -> None:
    """Keep deleted pictures for as long as a function says that they are needed."""
    if guard not in _guards:
        _guards.append(guard)


def collect_garbage(*, grace_seconds: float = GRACE_SECONDS) -> int:
    """Remove deleted pictures and datasets that nobody needs.

    Any number of processes may do this at once.

    Args:
        grace_seconds: What was deleted later than this ago is left for the next time.

    Returns:
        How many pictures and datasets went.
    """
    oldest = timezone.now() - timedelta(seconds=grace_seconds)
    ids = list(DatasetImage.objects.filter(deleted_at__lte=oldest).values_list("pk", flat=True))
    # All are asked about at once: a guard reads the list of every training that is under way.
    needed = {pk for guard in _guards for pk in guard(ids)} if ids else set()
    free = [pk for pk in ids if pk not in needed]
    for start in range(0, len(free), BATCH):
        _remove(free[start : start + BATCH])
    emptied = list(Dataset.objects.filter(deleted_at__lte=oldest, images=None)[:BATCH])
    for dataset in emptied:
        dataset.delete()
    return len(free) + len(emptied)


def _remove(ids: list[int]) -> None:
    rows = DatasetImage.objects.filter(pk__in=ids)
    keys = [key for pair in rows.values_list("key", "thumbnail_key") for key in pair]
    rows.delete()
    for key in keys:
        try:
            storage.delete(key)
        except OSError as error:
            # The row is gone, so the sweep of unreferenced files will find it.
            logger.warning("could not remove %s: %s", key, error)

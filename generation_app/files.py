"""Which stored files belong to a picture, and how they go."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

from django.db.models import Q

from generation_app.models import GeneratedImage, InputPicture
from studio_project import storage

logger = logging.getLogger(__name__)


def needed_keys(keys: Collection[str]) -> set[str]:
    """Return which of these keys, all under `jobs/`, a picture that was not deleted needs."""
    wanted = set(keys)
    named = Q(key__in=wanted) | Q(thumbnail_key__in=wanted) | Q(animation_key__in=wanted)
    rows = GeneratedImage.objects.live().filter(named)
    found = rows.values_list("key", "thumbnail_key", "animation_key")
    return wanted & {key for row in found for key in row}


def needed_inputs(keys: Collection[str]) -> set[str]:
    """Return which of these keys, all under `inputs/`, an input picture needs."""
    return set(InputPicture.objects.filter(key__in=keys).values_list("key", flat=True))


def remove(images: Iterable[GeneratedImage]) -> None:
    """Remove the files of pictures whose rows are gone or say deleted.

    One that cannot be removed now is logged and left to the sweep of unreferenced files.
    """
    for image in images:
        for key in image.keys:
            try:
                storage.delete(key)
            except OSError:
                logger.warning("could not remove %s", key, exc_info=True)

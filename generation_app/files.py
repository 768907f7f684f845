"""Which stored files belong to a picture, and how they go."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

from django.db.models import Q

from generation_app.models import GeneratedImage
from studio_project import storage

logger = logging.getLogger(__name__)


def needed_keys(keys: Collection[str]) -> set[str]:
    """Return which of these keys, all under `jobs/`, a picture that was not deleted needs."""
    wanted = set(keys)
    images = GeneratedImage.objects.live().filter(Q(key__in=wanted) | Q(thumbnail_key__in=wanted))
    return wanted & {key for pair in images.values_list("key", "thumbnail_key") for key in pair}


def remove(images: Iterable[GeneratedImage]) -> None:
    """Remove the files of pictures whose rows are gone or say deleted.

    One that cannot be removed now is logged and left to the sweep of unreferenced files.
    """
    for image in images:
        for key in (image.key, image.thumbnail_key):
            try:
                storage.delete(key)
            except OSError:
                logger.warning("could not remove %s", key, exc_info=True)

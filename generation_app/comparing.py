"""How far a picture that was made again is from the one it was made from.

Numbers only; what they mean, and what they look like, the page shows. Pillow, no torch.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import av
from PIL import Image, ImageChops

from generation_app.models import GeneratedImage
from studio_project import storage

logger = logging.getLogger(__name__)


def compare(original: GeneratedImage, made: Path) -> dict[str, Any] | None:
    """Compare a new file with a picture or clip that is stored.

    Returns:
        `max` and `mean` (of 255 levels, over all values) and `share` (of the values that differ);
        `sizes` instead if they are not of one size. None if the original cannot be read any more.
    """
    if original.deleted_at is not None:
        return None
    try:
        before = _frames(storage.local_copy(original.key))
        after = _frames(made)
    except (OSError, av.FFmpegError):
        logger.warning("picture %s cannot be compared with", original.pk, exc_info=True)
        return None
    sizes = [[image.size for image in frames] for frames in (before, after)]
    if sizes[0] != sizes[1]:
        return {"sizes": [f"{w} × {h} × {len(s)}" for s in sizes for w, h in s[:1]]}
    histogram = [0] * 256
    for old, new in zip(before, after, strict=True):
        levels = ImageChops.difference(old, new).histogram()
        for level in range(256):
            histogram[level] += levels[level] + levels[256 + level] + levels[512 + level]
    total = sum(histogram)
    return {
        "max": max(level for level in range(256) if histogram[level]),
        "mean": sum(level * count for level, count in enumerate(histogram)) / total,
        "share": 1 - histogram[0] / total,
    }


def _frames(path: Path) -> list[Image.Image]:
    if path.suffix != ".mp4":
        with Image.open(path) as image:
            return [image.convert("RGB")]
    with av.open(str(path)) as container:
        return [frame.to_image().convert("RGB") for frame in container.decode(video=0)]

"""Folders of files that can be made or fetched again, kept under ``STUDIO_CACHE_MAX_BYTES``."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path

from django.conf import settings

# What was made or used within it may be what somebody is about to open.
IN_USE_SECONDS = 15 * 60.0


def trim(folder: Path, *, spared: Collection[Path] = ()) -> None:
    """Removes the files that were used longest ago until the ceiling is kept.

    When a file was last used its modification time tells. Others may trim at the same time.

    Args:
        folder: Where the files lie, at any depth.
        spared: Folders in it whose files all stay; so do those used in the last minutes.
    """
    found = []
    for path in folder.rglob("*"):
        try:
            status = path.stat()
            if path.is_file():
                found.append((status.st_mtime, status.st_size, path))
        except FileNotFoundError:
            continue
    total, lately = sum(size for _moment, size, _path in found), time.time() - IN_USE_SECONDS
    for moment, size, path in sorted(found):
        if total <= settings.STUDIO_CACHE_MAX_BYTES or moment > lately:
            return
        if not any(path.is_relative_to(other) for other in spared):
            path.unlink(missing_ok=True)
            total -= size

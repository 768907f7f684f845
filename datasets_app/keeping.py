"""Keeps one picture that somebody sent: decoded by the one thread that does, written aside.

Datasets and whatever else takes pictures from people share it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import BinaryIO

from django.conf import settings

from datasets_app.images import KeptPicture, keep_picture
from studio_project.api import disk_full, is_disk_full

SUFFIXES = {"jpeg": ".jpg", "png": ".png", "webp": ".webp"}
# A decoded picture is up to a hundred times its file: one at a time, however many people upload,
# and always in the same thread, because each thread keeps the memory it has freed for itself.
_decoder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pictures")


def keep(stream: BinaryIO, kept: BinaryIO) -> KeptPicture:
    """Wait for the thread that decodes; see `keep_picture`.

    Raises:
        Refused: It is not a picture that is taken.
    """
    return _decoder.submit(
        keep_picture, stream, kept, max_pixels=settings.STUDIO_MAX_PIXELS
    ).result()


@contextmanager
def temporary_file() -> Iterator[BinaryIO]:
    """Open a nameless file beside the uploads; no room for it is the disk's problem, not ours."""
    try:
        with tempfile.TemporaryFile(dir=settings.FILE_UPLOAD_TEMP_DIR) as file:
            yield file  # type: ignore[misc]
    except OSError as error:
        if is_disk_full(error):
            raise disk_full() from error
        raise

"""Files: keys of our own, private answers, and a local copy for whoever computes.

No path ever comes from a request. A key is unique and written once, so publishing a file is making
the row that names it; the same protocol serves a disk and S3 (no rename, no lock). On a disk a file
is written aside, fsynced and renamed as well, so a crash leaves no half file under its key.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from django.conf import settings
from django.core.exceptions import SuspiciousFileOperation
from django.core.files.base import File
from django.core.files.storage import FileSystemStorage, default_storage
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, StreamingHttpResponse
from django.utils.http import content_disposition_header

from studio_project.api import disk_full, is_disk_full
from studio_project.cache_ceiling import trim
from studio_project.zip_stream import Member, zip_chunks, zip_length

CHUNK_BYTES = 256 * 1024
# How the system says that a file server does not answer.
_AWAY = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "EREMOTEIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "ESHUTDOWN"),
        *("EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH"),
    )
    if hasattr(errno, name)  # not every system has all of them
)
_KEY = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")


def new_key(*parts: object, suffix: str = "") -> str:
    """Return a fresh key under the given folders, such as `datasets/7/<uuid>.png`."""
    return checked("/".join([*map(str, parts), f"{uuid.uuid4().hex}{suffix}"]))


def checked(key: str) -> str:
    """Return the key, or refuse one that could leave its folder."""
    if not _KEY.match(key) or ".." in PurePosixPath(key).parts or "//" in key:
        raise SuspiciousFileOperation(f"not a storage key: {key!r}")
    return key


def _root() -> Path | None:
    """Return the folder of a local storage, None on S3."""
    if isinstance(default_storage, FileSystemStorage):
        return Path(default_storage.location)
    return None


def save(key: str, source: Path | BinaryIO | bytes) -> int:
    """Write a file under its key and return its size in bytes.

    Raises:
        Problem: `disk_full` when there is no room; nothing is left behind.
    """
    checked(key)
    try:
        if isinstance(source, Path):
            with source.open("rb") as handle:
                return _write(key, handle)
        return _write(key, BytesIO(source) if isinstance(source, bytes) else source)
    except OSError as error:
        if is_disk_full(error):
            raise disk_full() from error
        raise


def _write(key: str, handle: BinaryIO) -> int:
    root = _root()
    if root is None:
        default_storage.save(key, File(handle))
        return default_storage.size(key)
    path = root / key
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with aside.open("wb") as out:
            shutil.copyfileobj(handle, out, CHUNK_BYTES)
            out.flush()
            os.fsync(out.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return path.stat().st_size


def copy(source: str, key: str) -> None:
    """Put a stored file under a second key.

    What lies under a key never changes, so on a disk both keys share the content and it takes no
    room; on S3 the server copies.

    Raises:
        FileNotFoundError: Nothing lies under the first key.
        Problem: `disk_full`; nothing is left behind.
    """
    root = _root()
    if root is None:
        _copy_on_s3(checked(source), checked(key))
        return
    target = root / checked(key)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(root / checked(source))
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        save(key, root / source)


def _copy_on_s3(source: str, key: str) -> None:
    bucket = default_storage.bucket  # type: ignore[attr-defined]
    location = default_storage.location  # type: ignore[attr-defined]
    names = [f"{location}/{name}".strip("/") for name in (source, key)]
    if not exists(source):
        raise FileNotFoundError(source)
    bucket.copy({"Bucket": bucket.name, "Key": names[0]}, names[1])


def open_key(key: str) -> BinaryIO:
    """Open a stored file for reading."""
    return default_storage.open(checked(key), "rb")  # type: ignore[return-value]


def exists(key: str) -> bool:
    """Say whether a file stands under this key."""
    return default_storage.exists(checked(key))


def size(key: str) -> int:
    """Return the size of a stored file in bytes."""
    return default_storage.size(checked(key))


def delete(key: str) -> None:
    """Remove a file; one that is already gone is fine."""
    if key:
        default_storage.delete(checked(key))


def local_copy(key: str) -> Path:
    """Return a local path with the file's bytes: the file itself, or a cached copy of it."""
    checked(key)
    root = _root()
    if root is not None:
        return root / key
    copies = Path(settings.STUDIO_WORK_DIR) / "files"
    path = copies / key
    try:
        os.utime(path)  # from now on it is in use
    except FileNotFoundError:
        _fetch(key, path)
        # What a key belongs to (`models/7`) is fetched file by file and needed as a whole.
        trim(copies, spared=[copies.joinpath(*PurePosixPath(key).parts[:2])])
    return path


def _fetch(key: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open_key(key) as source, aside.open("wb") as out:
            shutil.copyfileobj(source, out, CHUNK_BYTES)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def local_folder(prefix: str, names: Iterable[str]) -> Path:
    """Return a local folder that holds the named files below a key prefix."""
    paths = [local_copy(f"{prefix.rstrip('/')}/{name}") for name in names]
    root = _root() or Path(settings.STUDIO_WORK_DIR) / "files"
    if not paths:
        raise FileNotFoundError(prefix)
    return root / prefix.rstrip("/")


def is_away(error: BaseException) -> bool:
    """Say whether an error means that the storage does not answer at the moment.

    What is full, missing or forbidden will be so the next time as well, and does not count.
    """
    # Loaded by now where the storage is on S3, and asked only when something went wrong.
    from botocore import exceptions
    from s3transfer.exceptions import RetriesExceededError

    if isinstance(error, exceptions.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or status == 429
    unreachable = (exceptions.ConnectionError, exceptions.HTTPClientError, RetriesExceededError)
    if isinstance(error, (*unreachable, ConnectionError, TimeoutError)):
        return True
    return isinstance(error, OSError) and error.errno in _AWAY


# --- room on the disk ---------------------------------------------------------------------------
def free_bytes() -> int:
    """Return the free space where files are written, in bytes."""
    folder = _root() or Path(settings.STUDIO_WORK_DIR)
    folder.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(folder).free


def free_space_ok(extra_bytes: int = 0) -> bool:
    """Say whether writing this much leaves the floor untouched."""
    return free_bytes() - extra_bytes >= settings.STUDIO_MIN_FREE_BYTES


def require_free_space(extra_bytes: int = 0) -> None:
    """Refuse before any work when the disk is nearly full.

    Raises:
        Problem: `disk_full`, status 507.
    """
    if not free_space_ok(extra_bytes):
        raise disk_full()


# --- answers ------------------------------------------------------------------------------------
def file_response(
    key: str, *, filename: str, content_type: str, inline: bool, request: HttpRequest
) -> HttpResponse | StreamingHttpResponse:
    """Hand over a stored file to someone who was already checked.

    The proxy does it where there is one (X-Accel), S3 by a short signed URL, else this process with
    Range and ETag.

    Args:
        key: The file.
        filename: Name to save it as.
        content_type: What our own rows say it is, never what a client said.
        inline: Shown in the page (pictures) or saved (weights).
        request: For Range and If-None-Match.
    """
    disposition = content_disposition_header(not inline, filename) or "inline"
    etag = f'"{hashlib.sha256(key.encode()).hexdigest()[:32]}"'  # a key is written once
    headers = {
        "X-Content-Type-Options": "nosniff",
        "Content-Disposition": disposition,
        "Cache-Control": "private, max-age=3600",
        "ETag": etag,
        "Accept-Ranges": "bytes",
    }
    if request.headers.get("If-None-Match") == etag:
        return HttpResponse(status=304, headers=headers)
    if _root() is None:
        parameters = {
            "ResponseContentDisposition": disposition,
            "ResponseContentType": content_type,
        }
        return HttpResponseRedirect(default_storage.url(checked(key), parameters=parameters))  # type: ignore[call-arg]
    if settings.STUDIO_ACCEL_PREFIX:
        headers["X-Accel-Redirect"] = f"{settings.STUDIO_ACCEL_PREFIX.rstrip('/')}/{checked(key)}"
        return HttpResponse(headers=headers, content_type=content_type)
    return _local_response(local_copy(key), request, headers, content_type)


def zip_response(
    entries: Mapping[str, tuple[str, int]], *, filename: str, request: HttpRequest
) -> StreamingHttpResponse:
    """Hand over several stored files as one archive, made while it is sent.

    Args:
        entries: Key and size of each file, by its name in the archive.
        filename: Name to save it as.
        request: Decides how it is streamed.
    """
    members = [
        Member(name, size, partial(open_key, checked(key))) for name, (key, size) in entries.items()
    ]
    headers = {
        "X-Content-Type-Options": "nosniff",
        "Content-Disposition": content_disposition_header(True, filename) or "attachment",
        "Cache-Control": "private, no-store",
        "Content-Length": str(zip_length(members)),
    }
    return StreamingHttpResponse(
        _streamed(zip_chunks(members), request), headers=headers, content_type="application/zip"
    )


def _local_response(
    path: Path, request: HttpRequest, headers: dict[str, str], content_type: str
) -> HttpResponse | StreamingHttpResponse:
    if not path.is_file():
        return HttpResponse(status=404)
    total = path.stat().st_size
    start, stop, code = 0, total, 200
    match = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", request.headers.get("Range", ""))
    if match and (match[1] or match[2]):
        if match[1]:
            start, stop = int(match[1]), min(int(match[2]) + 1 if match[2] else total, total)
        else:
            start = max(total - int(match[2]), 0)
        if start >= stop:
            return HttpResponse(status=416, headers={"Content-Range": f"bytes */{total}"})
        code = 206
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{total}"
    headers["Content-Length"] = str(stop - start)
    if stop - start <= CHUNK_BYTES:
        with path.open("rb") as handle:
            handle.seek(start)
            body = handle.read(stop - start)
        return HttpResponse(body, status=code, headers=headers, content_type=content_type)
    stream = _streamed(_chunks(path, start, stop), request)
    return StreamingHttpResponse(stream, status=code, headers=headers, content_type=content_type)


def _streamed(
    chunks: Iterator[bytes], request: HttpRequest
) -> Iterator[bytes] | AsyncIterator[bytes]:
    # Under ASGI a synchronous iterator would be read whole into memory before the first byte.
    return _async_chunks(chunks) if isinstance(request, ASGIRequest) else chunks


def _chunks(path: Path, start: int, stop: int) -> Iterator[bytes]:
    with path.open("rb") as handle:
        handle.seek(start)
        left = stop - start
        while left > 0 and (chunk := handle.read(min(CHUNK_BYTES, left))):
            left -= len(chunk)
            yield chunk


async def _async_chunks(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    while chunk := await asyncio.to_thread(next, chunks, b""):
        yield chunk

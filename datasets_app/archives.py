"""Reads zip files that strangers made.

Standard library only. Nothing is ever extracted to a path: an entry's folder only says which
captions and pictures belong together. Numbers are checked before an entry is opened and again while
its bytes flow, since a header may say anything.
"""

from __future__ import annotations

import posixpath
import re
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from datasets_app.refusals import Refused

CHUNK_BYTES = 256 * 1024
ENTRY_HEADER_BYTES = 46
END_BYTES = 22
MAX_COMMENT_BYTES = 65_535
# Small archives may be dense (drawings of one colour are); the ratio counts from here on.
RATIO_FLOOR_BYTES = 1024 * 1024
ENCRYPTED_FLAG = 0x1
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
NESTED_ENDINGS = (
    ".zip", ".7z", ".rar", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".cbz", ".jar",
)  # fmt: skip
# What operating systems add without being asked.
LITTER = ("thumbs.db", "desktop.ini")
_DRIVE = re.compile(r"^[A-Za-z]:")
_READ_ERRORS = (
    zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error,
    ValueError, UnicodeError, OverflowError,
)  # fmt: skip


class EntryRefused(Refused):
    """One entry that is not taken; the others may be.

    Args:
        name: The entry's name as the archive gives it.
        code: Stable name of the reason.
    """

    def __init__(self, name: str, code: str) -> None:
        super().__init__(code)
        self.name = name


@dataclass(frozen=True)
class Limits:
    """What an archive may hold.

    Args:
        max_entries: Entries, folders included.
        max_total_bytes: Sum of the unpacked sizes.
        max_entry_bytes: Unpacked size of one entry.
        max_ratio: Unpacked to packed bytes.
    """

    max_entries: int = 5000
    max_total_bytes: int = 1024**3
    max_entry_bytes: int = 64 * 1024**2
    max_ratio: int = 100


@dataclass(frozen=True)
class Entry:
    """One file of an archive.

    Args:
        folder: Its folder within the archive, without a slash at the end.
        name: Its name without the folder.
        info: How the archive describes it.
    """

    folder: str
    name: str
    info: zipfile.ZipInfo


class Archive:
    """An opened zip whose totals were checked.

    Args:
        stream: The file; seekable. It stays open and belongs to the caller.
        limits: What it may hold.

    Raises:
        Refused: Nothing of it can be taken.
    """

    def __init__(self, stream: BinaryIO, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.entries: list[Entry] = []
        self.rejected: list[EntryRefused] = []
        self._unpacked_bytes = 0
        self._packed_bytes = stream.seek(0, 2)
        _check_directory(stream, self._packed_bytes, self.limits.max_entries)
        try:
            self._zip = zipfile.ZipFile(stream)
        except _READ_ERRORS as error:
            raise Refused("archive_unreadable") from error
        infos = self._zip.infolist()
        self._check_totals(infos)
        for info in infos:
            self._sort_in(info)
        if not self.entries and not self.rejected:
            raise Refused("archive_empty")

    def _check_totals(self, infos: list[zipfile.ZipInfo]) -> None:
        if any(info.flag_bits & ENCRYPTED_FLAG for info in infos):
            raise Refused("archive_encrypted")
        total = sum(info.file_size for info in infos)
        self._require_modest(total)
        # Entries that share their packed bytes: each looks harmless, together they are a bomb.
        if sum(info.compress_size for info in infos) > self._packed_bytes:
            raise Refused("archive_bomb", ratio=self.limits.max_ratio)
        for info in infos:
            dense = info.file_size > self.limits.max_ratio * max(info.compress_size, 1)
            if dense and info.file_size > RATIO_FLOOR_BYTES:
                raise Refused("archive_bomb", ratio=self.limits.max_ratio)

    def _require_modest(self, unpacked_bytes: int) -> None:
        """Refuse when this many bytes came, or are to come, out of the archive."""
        if unpacked_bytes > self.limits.max_total_bytes:
            megabytes = self.limits.max_total_bytes // 1024**2
            raise Refused("archive_too_large", megabytes=megabytes)
        dense = unpacked_bytes > self.limits.max_ratio * self._packed_bytes
        if dense and unpacked_bytes > RATIO_FLOOR_BYTES:
            raise Refused("archive_bomb", ratio=self.limits.max_ratio)

    def _sort_in(self, info: zipfile.ZipInfo) -> None:
        path = info.orig_filename.replace("\\", "/")
        folder, name = posixpath.split(path)
        if not _is_safe(path):
            self.rejected.append(EntryRefused(info.orig_filename, "archive_unsafe_name"))
            return
        if not name or _is_litter(folder, name):
            return
        code = self._refusal(info, name)
        if code:
            self.rejected.append(EntryRefused(info.orig_filename, code))
        else:
            self.entries.append(Entry(posixpath.normpath(folder) if folder else "", name, info))

    def _refusal(self, info: zipfile.ZipInfo, name: str) -> str:
        file_type = stat.S_IFMT(info.external_attr >> 16)
        if file_type not in (0, stat.S_IFREG):
            return "archive_link"
        if name.lower().endswith(NESTED_ENDINGS):
            return "archive_nested"
        if info.compress_type not in METHODS:
            return "archive_method"
        return "archive_entry_too_large" if info.file_size > self.limits.max_entry_bytes else ""

    def copy(self, entry: Entry, target: BinaryIO) -> None:
        """Write an entry's bytes to a file, counting them as they come.

        Raises:
            EntryRefused: Its bytes are damaged, or it is an archive itself.
            Refused: More came out of the archive than it may hold.
        """
        copied_bytes = 0
        try:
            with self._zip.open(entry.info) as source:
                while chunk := source.read(CHUNK_BYTES):
                    if not copied_bytes and chunk.startswith(b"PK\x03\x04"):
                        raise EntryRefused(entry.info.orig_filename, "archive_nested")
                    copied_bytes += len(chunk)
                    self._unpacked_bytes += len(chunk)
                    if copied_bytes > self.limits.max_entry_bytes:
                        raise EntryRefused(entry.info.orig_filename, "archive_entry_too_large")
                    self._require_modest(self._unpacked_bytes)
                    target.write(chunk)
        except _READ_ERRORS as error:
            raise EntryRefused(entry.info.orig_filename, "archive_entry_damaged") from error


def _is_safe(path: str) -> bool:
    """Say whether a name stays where it is put: relative, without `..`, control characters, NUL."""
    if path.startswith("/") or _DRIVE.match(path):
        return False
    return ".." not in path.split("/") and not any(ord(letter) < 32 for letter in path)


def _is_litter(folder: str, name: str) -> bool:
    in_litter = "__macosx" in folder.lower().split("/")
    return in_litter or name.startswith(".") or name.lower() in LITTER


def _check_directory(stream: BinaryIO, size_bytes: int, max_entries: int) -> None:
    """Count the entries before the library makes an object of each: a million would fill memory."""
    tail_bytes = min(size_bytes, END_BYTES + MAX_COMMENT_BYTES)
    stream.seek(size_bytes - tail_bytes)
    tail = stream.read(tail_bytes)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < END_BYTES:
        raise Refused("archive_unreadable")
    if tail[max(at - 20, 0) : at].startswith(b"PK\x06\x07"):
        # ZIP64 is for archives beyond 4 GB or 65,535 entries; none of those can be taken anyway.
        raise Refused("archive_unreadable")
    (directory_bytes,) = struct.unpack("<L", tail[at + 12 : at + 16])
    position = size_bytes - tail_bytes + at - directory_bytes
    if position < 0:
        raise Refused("archive_unreadable")
    end = position + directory_bytes
    for _entry in range(max_entries):
        stream.seek(position)
        header = stream.read(ENTRY_HEADER_BYTES)
        if position >= end or len(header) < ENTRY_HEADER_BYTES or header[:4] != b"PK\x01\x02":
            return
        position += ENTRY_HEADER_BYTES + sum(struct.unpack("<HHH", header[28:34]))
    if position < end:
        raise Refused("archive_too_many_entries", limit=max_entries)

"""A zip archive as a stream: stored, not deflated, of a length that is known before the first byte.

Weights do not get smaller by deflating. The checksums are known only when a file has gone by, so
they stand behind it (the format's data descriptor); nothing is read twice or held in memory.

Source: PKWARE, APPNOTE.TXT 6.3.10, sections 4.3.7 to 4.3.16 and 4.5.3.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO
from zlib import crc32

CHUNK_BYTES = 256 * 1024
#: From here on numbers need the format's 64-bit fields.
LIMIT = 0xFFFFFFFF
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END_64 = struct.Struct("<4sQ2H2I4Q4sIQI")
_EXTRA_LOCAL = struct.Struct("<2H2Q")
_EXTRA_CENTRAL = struct.Struct("<2H3Q")
_DESCRIPTOR, _DESCRIPTOR_64 = struct.Struct("<4s3I"), struct.Struct("<4sI2Q")
#: Names are UTF-8, checksum and sizes stand behind the file.
_FLAGS = 0x0808
#: The first day that the format knows: equal folders give equal archives.
_DATE = 0x0021
_VERSION, _VERSION_64 = 20, 45


@dataclass(frozen=True)
class Member:
    """A file of an archive.

    Attributes:
        name: Its path in the archive, with slashes.
        size: Its bytes.
        open: Opens it for reading.
    """

    name: str
    size: int
    open: Callable[[], BinaryIO]


def _is_large(member: Member, offset: int) -> bool:
    return max(member.size, offset) >= LIMIT


def zip_length(members: Sequence[Member]) -> int:
    """Return how many bytes `zip_chunks` will give."""
    position = directory = 0
    for member in members:
        name, is_large = len(member.name.encode()), _is_large(member, position)
        directory += _CENTRAL.size + name + (_EXTRA_CENTRAL.size if is_large else 0)
        position += _LOCAL.size + name + (_EXTRA_LOCAL.size if is_large else 0) + member.size
        position += (_DESCRIPTOR_64 if is_large else _DESCRIPTOR).size
    return position + directory + len(_end(len(members), position, directory))


def zip_chunks(members: Sequence[Member]) -> Iterator[bytes]:
    """Give an archive piece by piece.

    Raises:
        OSError: A file cannot be read, or is not as long as was said.
    """
    position, directory = 0, b""
    for member in members:
        name, is_large = member.name.encode(), _is_large(member, position)
        head = _local_header(name, is_large)
        yield head
        checksum = 0
        for chunk in _content(member):
            checksum = crc32(chunk, checksum)
            yield chunk
        tail = (_DESCRIPTOR_64 if is_large else _DESCRIPTOR).pack(
            b"PK\x07\x08", checksum, member.size, member.size
        )
        yield tail
        directory += _central_header(name, checksum, member.size, position, is_large)
        position += len(head) + member.size + len(tail)
    yield directory
    yield _end(len(members), position, len(directory))


def _content(member: Member) -> Iterator[bytes]:
    left = member.size
    with member.open() as handle:
        while chunk := handle.read(CHUNK_BYTES):
            left -= len(chunk)
            if left < 0:
                break
            yield chunk
    if left:
        raise OSError(f"{member.name} is not as long as it should be")


def _local_header(name: bytes, is_large: bool) -> bytes:
    # Sizes are zero here and stand behind the file; only their width has to be known.
    extra = _EXTRA_LOCAL.pack(1, 16, 0, 0) if is_large else b""
    size = LIMIT if is_large else 0
    version = _VERSION_64 if is_large else _VERSION
    head = _LOCAL.pack(
        b"PK\x03\x04", version, _FLAGS, 0, 0, _DATE, 0, size, size, len(name), len(extra)
    )
    return head + name + extra


def _central_header(name: bytes, checksum: int, size: int, offset: int, is_large: bool) -> bytes:
    extra = _EXTRA_CENTRAL.pack(1, 24, size, size, offset) if is_large else b""
    if is_large:
        size = offset = LIMIT
    version = _VERSION_64 if is_large else _VERSION
    numbers = (version, version, _FLAGS, 0, 0, _DATE, checksum, size, size)
    head = _CENTRAL.pack(b"PK\x01\x02", *numbers, len(name), len(extra), 0, 0, 0, 0, offset)
    return head + name + extra


def _end(count: int, offset: int, size: int) -> bytes:
    """The end of an archive: how many files, and where their directory lies and how long it is."""
    if max(offset, size) < LIMIT and count < 0xFFFF:
        return _END.pack(b"PK\x05\x06", 0, 0, count, count, size, offset, 0)
    large = _END_64.pack(
        b"PK\x06\x06", 44, _VERSION_64, _VERSION_64, 0, 0, count, count, size, offset,
        b"PK\x06\x07", 0, offset + size, 1,
    )  # fmt: skip
    few = min(count, 0xFFFF)
    return large + _END.pack(b"PK\x05\x06", 0, 0, few, few, min(size, LIMIT), LIMIT, 0)

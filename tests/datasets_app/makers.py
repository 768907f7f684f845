"""Makes the files that the tests of datasets upload, good and bad."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Mapping
from io import BytesIO

from django.core.files.uploadedfile import SimpleUploadedFile
from PIL import Image

HEIC = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + b"\x00" * 64
AVIF = b"\x00\x00\x00\x18ftypavif\x00\x00\x00\x00mif1avif" + b"\x00" * 64
SVG = b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
GIF = b"GIF89a\x01\x00\x01\x00\x00\x00\x00;"


def gradient(seed: int = 0, size: tuple[int, int] = (24, 16)) -> Image.Image:
    """A small picture that differs from that of any other seed."""
    width, height = size
    pixels = [
        ((x * 9 + seed * 7) % 256, (y * 13 + seed) % 256, (x * y + seed // 256) % 256)
        for y in range(height)
        for x in range(width)
    ]
    picture = Image.new("RGB", size)
    picture.putdata(pixels)
    return picture


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The bytes of a picture."""
    out = BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def png(seed: int = 0, size: tuple[int, int] = (24, 16)) -> bytes:
    """The bytes of a small PNG."""
    return encoded(gradient(seed, size))


def upload(name: str, content: bytes) -> SimpleUploadedFile:
    """A file as a request brings it."""
    return SimpleUploadedFile(name, content)


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(
    width: int,
    height: int,
    *,
    bits: int = 8,
    colour: int = 2,
    rows: bytes = b"",
    extra: bytes = b"",
) -> bytes:
    """A PNG of any header, with rows that begin with their filter byte."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows, 9))
        + chunk(b"IEND", b"")
    )


def huge_png(side: int = 30_000) -> bytes:
    """A few hundred bytes that would decode to gigabytes."""
    return raw_png(side, side, rows=b"\0" * 10_000)


def zipped(entries: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of some files."""
    out = BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=method)
    return out.getvalue()

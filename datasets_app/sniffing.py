"""Tells what a file is from its bytes, without decoding it and without any library.

It reads a few kilobytes: enough to name the format, and for the formats that are taken to know
their size, whether they are animated and whether the file ends where it should.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import BinaryIO

HEAD_BYTES = 4096
TAIL_BYTES = 64
MAX_SEGMENTS = 10_000
READABLE = frozenset({"JPEG", "PNG", "WEBP"})
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (PNG_SIGNATURE, "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
    (b"8BPS", "PSD"),
    (b"%PDF", "PDF"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x01\x00", "ICO"),
)
_HEIC_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}
_SVG = re.compile(rb"^(?:\xef\xbb\xbf)?\s*(?:<\?xml|<!doctype\s+svg|<!--|<svg)", re.IGNORECASE)
# Frame headers that hold a JPEG's size: SOF0 to SOF15 without DHT, JPG and DAC.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True)
class Kind:
    """What a file is.

    Args:
        name: Pillow's name of the format, or what people call it; empty if it is none we know.
        is_empty: The file has no bytes.
        pixels: Width times height as the header says; 0 if it does not say.
        bits: Bits of a sample.
        is_animated: It holds several frames to be shown one after the other.
        is_lossless: The pixels are exactly those that were drawn.
        is_cut_short: The file ends before its format says it may.
    """

    name: str = ""
    is_empty: bool = False
    pixels: int = 0
    bits: int = 8
    is_animated: bool = False
    is_lossless: bool = False
    is_cut_short: bool = False

    @property
    def is_readable(self) -> bool:
        """Whether pictures of this format are taken."""
        return self.name in READABLE


def sniff(source: BinaryIO) -> Kind:
    """Say what a file is.

    Args:
        source: The file; seekable. Its position changes.
    """
    source.seek(0)
    head = source.read(HEAD_BYTES)
    if not head:
        return Kind(is_empty=True)
    size_bytes = source.seek(0, 2)
    name = _name(head)
    if name == "PNG":
        return _png(source, head, size_bytes)
    if name == "WEBP":
        return _webp(source, size_bytes)
    if name == "JPEG":
        return _jpeg(source, size_bytes)
    return Kind(name)


def _name(head: bytes) -> str:
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        brands = {head[8:12], *(head[at : at + 4] for at in range(16, min(len(head), 64), 4))}
        if brands & _AVIF_BRANDS:
            return "AVIF"
        return "HEIC" if brands & _HEIC_BRANDS else "video"
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return name
    if _SVG.match(head) and b"<svg" in head.lower():
        return "SVG"
    return ""


def _png(source: BinaryIO, head: bytes, size_bytes: int) -> Kind:
    if len(head) < 33 or head[12:16] != b"IHDR":
        return Kind("PNG", is_cut_short=len(head) < 33)
    width, height, bits = struct.unpack(">IIB", head[16:25])
    is_animated = False
    at = len(PNG_SIGNATURE)
    for _chunk in range(MAX_SEGMENTS):
        source.seek(at)
        header = source.read(12)
        if len(header) < 12 or header[4:8] == b"IDAT":
            break
        if header[4:8] == b"acTL":
            is_animated = int.from_bytes(header[8:12]) > 1
        at += 12 + int.from_bytes(header[:4])
    return Kind(
        "PNG",
        pixels=width * height,
        bits=bits,
        is_animated=is_animated,
        is_lossless=True,
        is_cut_short=b"IEND" not in _tail(source, size_bytes),
    )


def _webp(source: BinaryIO, size_bytes: int) -> Kind:
    source.seek(4)
    declared = int.from_bytes(source.read(4), "little") + 8
    pixels, is_animated, is_lossless = 0, False, False
    at = 12
    for _chunk in range(MAX_SEGMENTS):
        source.seek(at)
        header, body = source.read(8), source.read(10)
        if len(body) < 10:
            break
        chunk, length = header[:4], int.from_bytes(header[4:], "little")
        at += 8 + length + length % 2
        if chunk == b"VP8X":
            width = int.from_bytes(body[4:7], "little") + 1
            height = int.from_bytes(body[7:10], "little") + 1
            pixels, is_animated = width * height, bool(body[0] & 0x02)
        elif chunk == b"VP8L":
            bits = int.from_bytes(body[1:5], "little")
            pixels = pixels or ((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1)
            is_lossless = True
            break
        elif chunk == b"VP8 ":
            width, height = struct.unpack("<HH", body[6:10])
            pixels = pixels or (width & 0x3FFF) * (height & 0x3FFF)
            break
    return Kind(
        "WEBP",
        pixels=pixels,
        is_animated=is_animated,
        is_lossless=is_lossless,
        is_cut_short=size_bytes < declared,
    )


def _jpeg(source: BinaryIO, size_bytes: int) -> Kind:
    pixels, at = 0, 2
    for _segment in range(MAX_SEGMENTS):
        source.seek(at)
        header = source.read(9)
        if len(header) < 9 or header[0] != 0xFF or header[1] == 0xDA:
            break
        if header[1] == 0xFF:  # a fill byte
            at += 1
            continue
        if header[1] in _JPEG_FRAMES:
            height, width = struct.unpack(">HH", header[5:9])
            pixels = width * height
            break
        at += 2 + int.from_bytes(header[2:4])
    else:
        return Kind()  # thousands of segments before the first pixel: no camera writes that
    return Kind("JPEG", pixels=pixels, is_cut_short=b"\xff\xd9" not in _tail(source, size_bytes))


def _tail(source: BinaryIO, size_bytes: int) -> bytes:
    source.seek(max(size_bytes - TAIL_BYTES, 0))
    return source.read(TAIL_BYTES)

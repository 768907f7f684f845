"""Reads one uploaded picture and writes what is kept of it.

Pure Pillow: no Django, no database, no storage. A picture is recognised by its bytes, never by its
name; its size is checked before its pixels are decoded; what is kept is always written anew, so
nothing that came with the pixels (location data, comments, trailing bytes) survives.

What is kept is 8-bit sRGB without alpha, the right way up: PNG and lossless WebP keep their pixels
exactly, JPEG and lossy WebP become a JPEG of quality 95 without chroma subsampling.

It neither limits how many pictures are decoded at once nor says its refusals in a language: the
caller does both.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

from PIL import Image, ImageChops, ImageCms
from PIL.Image import Transpose

from datasets_app.refusals import Refused
from datasets_app.sniffing import Kind, sniff

THUMBNAIL_SIDE = 384
JPEG_QUALITY = 95
HASH_ROWS = 256
MAX_JPEG_SCANS = 100
MAX_SIDE = 65_000  # what a JPEG can hold
# Two profiles that differ by no more than this on every probe are the same for 8-bit pixels.
SAME_PROFILE = 2

_DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError,
    ZeroDivisionError, NotImplementedError, struct.error,
)  # fmt: skip
_BOMB_ERRORS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class KeptPicture:
    """What is known of a picture that was written.

    Args:
        format: ``jpeg``, ``png`` or ``webp``.
        width: Pixels, after orientation.
        height: Pixels, after orientation.
        size_bytes: Size of the kept file.
        pixel_sha256: Hash of the pixels of the kept file (`pixel_sha256`).
        thumbnail: A WebP of at most 384 × 384 pixels.
    """

    format: str
    width: int
    height: int
    size_bytes: int
    pixel_sha256: str
    thumbnail: bytes


def keep_picture(source: BinaryIO, kept: BinaryIO, *, max_pixels: int) -> KeptPicture:
    """Check a picture and write what is kept of it.

    Args:
        source: The uploaded file; seekable.
        kept: Where the kept file goes: empty, seekable and readable. It is left at its start.
        max_pixels: Larger pictures are refused before they are decoded.

    Returns:
        Its measures, its hash and its thumbnail.

    Raises:
        Refused: It is not a picture that is taken.
    """
    kind = _recognise(source)
    image = _upright_srgb(_decode(source, kind, max_pixels), kind)
    file_format = _write(image, kept, kind)
    if file_format == "jpeg":
        # The hash is of what a training will read, so it comes from the kept file.
        kept.seek(0)
        image = Image.open(kept, formats=["JPEG"])
        image.load()
    width, height = image.size
    digest = pixel_sha256(image)
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    thumbnail = BytesIO()
    image.save(thumbnail, "WEBP", quality=82, method=4)
    size_bytes = kept.seek(0, 2)
    kept.seek(0)
    return KeptPicture(file_format, width, height, size_bytes, digest, thumbnail.getvalue())


def pixel_sha256(image: Image.Image) -> str:
    """Return the SHA-256 of a picture's size and RGB pixels in hexadecimal.

    The hashed bytes are ``"<width>x<height>:"`` in ASCII, then the rows of 8-bit RGB from the top.
    """
    width, height = image.size
    digest = hashlib.sha256(f"{width}x{height}:".encode())
    for top in range(0, height, HASH_ROWS):
        strip = image.crop((0, top, width, min(top + HASH_ROWS, height)))
        digest.update(strip.convert("RGB").tobytes())
    return digest.hexdigest()


# --- reading ------------------------------------------------------------------------------------
def _recognise(source: BinaryIO) -> Kind:
    kind = sniff(source)
    if kind.is_empty:
        raise Refused("empty_file")
    if not kind.name:
        raise Refused("not_a_picture")
    if not kind.is_readable:
        named = {"SVG", "HEIC", "GIF", "AVIF"}
        code = f"unsupported_{kind.name.lower()}" if kind.name in named else "unsupported_format"
        raise Refused(code, format=kind.name)
    if kind.is_animated:
        raise Refused("animated_picture")
    return kind


def _decode(source: BinaryIO, kind: Kind, max_pixels: int) -> Image.Image:
    # The WebP decoder makes room for the whole canvas when it opens a file, so the size that the
    # header tells is checked before any library sees it.
    if kind.pixels > max_pixels:
        raise _too_many_pixels(max_pixels)
    if kind.name == "JPEG" and _count_scans(source) > MAX_JPEG_SCANS:
        raise Refused("damaged_picture")
    source.seek(0)
    try:
        image = Image.open(source, formats=[kind.name])
        if image.width * image.height > max_pixels:
            raise _too_many_pixels(max_pixels)
        if max(image.size) > MAX_SIDE:
            raise Refused("too_long", pixels=MAX_SIDE)
        # A JPEG with several frames is a camera's MPO: the first one is the picture.
        if kind.name != "JPEG" and getattr(image, "is_animated", False):
            raise Refused("animated_picture")
        image.load()
    except _BOMB_ERRORS as error:
        raise _too_many_pixels(max_pixels) from error
    except _DECODE_ERRORS as error:
        code = "truncated_picture" if kind.is_cut_short else "damaged_picture"
        raise Refused(code) from error
    return image


def _too_many_pixels(max_pixels: int) -> Refused:
    return Refused("too_many_pixels", megapixels=max_pixels // 1_000_000)


def _count_scans(source: BinaryIO) -> int:
    """Count a JPEG's scans: each costs a pass over all pixels, and a file can hold thousands."""
    source.seek(0)
    count, last = 0, b""
    while chunk := source.read(1024 * 1024):
        count += (last + chunk).count(b"\xff\xda")
        last = chunk[-1:]
    return count


# --- colours ------------------------------------------------------------------------------------
def _upright_srgb(image: Image.Image, kind: Kind) -> Image.Image:
    """Return the picture as plain 8-bit sRGB, flattened on white and turned the right way up."""
    turn = _TURNS.get(_orientation(image))
    profile = image.info.get("icc_profile")
    colour, alpha = _split_alpha(_eight_bit(image, kind))
    del image  # a large picture is worth 200 MB; no copy is held longer than it is needed
    colour = _to_srgb(colour, profile)
    if alpha is not None and alpha.getextrema() != (255, 255):
        white = Image.new("RGB", colour.size, "white")
        white.paste(colour, mask=alpha)
        colour = white
    if turn is not None:
        colour = colour.transpose(turn)
    colour.info = {}
    return colour


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; damaged EXIF data says nothing about the pixels."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except _DECODE_ERRORS:
        return 1
    return value if isinstance(value, int) else 1


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Return the picture in a mode, without a copy when it is in it already."""
    return image if image.mode == mode else image.convert(mode)


def _eight_bit(image: Image.Image, kind: Kind) -> Image.Image:
    """Bring 16-bit samples to 8 bits; a plain conversion would clip grey ones at 255."""
    if kind.bits != 16:
        return image
    see_through = image.info.get("transparency")
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
        image.info = {"icc_profile": profile} if profile else {}
        if isinstance(see_through, int):
            image.info["transparency"] = round(see_through / 257)
    elif isinstance(see_through, tuple):  # Pillow has read the upper byte of each sample
        image.info["transparency"] = tuple(value >> 8 for value in see_through)
    return image


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return the colours as L, RGB or CMYK, and the alpha channel if there is one."""
    if image.mode == "CMYK":
        return image, None
    if image.has_transparency_data:
        layered = _in_mode(image, "RGBA")
        return layered.convert("RGB"), layered.getchannel("A")
    return _in_mode(image, "L" if image.mode in ("1", "L") else "RGB"), None


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert by the embedded profile; one that is damaged, or of other channels, is ignored."""
    if not profile:
        return _in_mode(image, "RGB")
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(BytesIO(profile)),
            _SRGB,
            image.mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return _in_mode(image, "RGB")
    if image.mode != "CMYK" and _changes_nothing(transform, image.mode):
        return _in_mode(image, "RGB")
    return _transformed(image, transform)


def _transformed(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    converted = ImageCms.applyTransform(image, transform)
    if converted is None:
        raise ValueError("the transform was to make a new picture")
    return converted


@functools.cache
def _probe(mode: str) -> Image.Image:
    """Return a picture of colours from all over the cube, or of all greys."""
    if mode == "L":
        probe = Image.new("L", (256, 1))
        probe.putdata(range(256))
        return probe
    levels = (*range(0, 256, 17),)
    probe = Image.new("RGB", (len(levels) ** 2, len(levels)))
    probe.putdata([(red, green, blue) for red in levels for green in levels for blue in levels])
    return probe


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Say whether a transform is sRGB to sRGB, whose rounding would alter pixels for nothing."""
    probe = _probe(mode)
    difference = ImageChops.difference(probe.convert("RGB"), _transformed(probe, transform))
    beyond = difference.point(lambda level: level > SAME_PROFILE and 255)
    return beyond.getbbox() is None


# --- writing ------------------------------------------------------------------------------------
def _write(image: Image.Image, kept: BinaryIO, kind: Kind) -> str:
    """Write the picture in the format it is kept in, and return that format's name."""
    if kind.name == "PNG":
        image.save(kept, "PNG", compress_level=4)
        return "png"
    if kind.name == "WEBP" and kind.is_lossless:
        image.save(kept, "WEBP", lossless=True, quality=20, method=1)
        return "webp"
    image.save(kept, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return "jpeg"

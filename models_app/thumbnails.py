"""Makes the small picture that stands for a model out of whatever somebody uploads."""

from __future__ import annotations

import warnings
from io import BytesIO
from typing import BinaryIO

from django.conf import settings
from django.utils.translation import gettext as _
from PIL import Image, ImageOps

from studio_project.api import Problem

MAX_UPLOAD_BYTES = 20 * 1024**2
SIDE_PIXELS = 512
FORMATS = ("JPEG", "PNG", "WEBP")


def make_thumbnail(upload: BinaryIO) -> bytes:
    """Return a WebP of at most 512 pixels a side: oriented, on white, without metadata.

    Raises:
        Problem: `thumbnail_invalid`; the upload is too large or no picture we read.
    """
    content = upload.read(MAX_UPLOAD_BYTES + 1)
    if len(content) > MAX_UPLOAD_BYTES:
        raise _refused(_("This picture is larger than 20 MB; export a smaller one."))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(BytesIO(content), formats=FORMATS)
        if picture.width * picture.height > settings.STUDIO_MAX_PIXELS:
            raise _refused(_("This picture has too many pixels; export a smaller one."))
        picture.draft("RGB", (2 * SIDE_PIXELS, 2 * SIDE_PIXELS))
        flat = _on_white(ImageOps.exif_transpose(picture))
        flat.thumbnail((SIDE_PIXELS, SIDE_PIXELS), Image.Resampling.LANCZOS)
        out = BytesIO()
        flat.save(out, "WEBP", quality=85)
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise _refused(_("This is not a JPEG, PNG or WebP picture that we can read.")) from error
    return out.getvalue()


def _on_white(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")


def _refused(message: str) -> Problem:
    return Problem("thumbnail_invalid", message, fields={"file": [message]})

"""Writes a clip: MP4 (H.264) for players, animated WebP for pages and messages that take pictures.

Both say how the clip was made. The encoder runs on one thread, so the same frames give the same
bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from PIL import Image

from generation_app.engine.metadata import exif_of, own_json, write_aside

# Visually lossless for what a diffusion model makes, at about a tenth of the bits of a still.
_CRF = "16"
_WEBP_QUALITY = 90


def save_mp4(
    frames: Sequence[Image.Image], path: Path, *, fps: int, parameters: dict[str, Any]
) -> int:
    """Write frames as H.264 in MP4, whole or not at all.

    Args:
        frames: RGB, all of one size with even sides.
        path: Where it goes; the folder exists.
        fps: Frames per second.
        parameters: Every resolved value, as plain JSON; it stands in the ``comment`` tag.

    Returns:
        The size of the file in bytes.

    Raises:
        OSError: The disk is full or gone; nothing is left behind.
    """

    def write(file: BinaryIO) -> None:
        # The index goes to the front, so that a browser starts before it has the whole file.
        options = {"movflags": "+faststart"}
        with av.open(file, "w", format="mp4", options=options) as container:
            container.metadata["comment"] = own_json(parameters)
            stream = container.add_stream("libx264", rate=Fraction(fps))
            stream.width, stream.height = frames[0].size
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": _CRF, "preset": "medium", "tune": "animation"}
            context = stream.codec_context
            context.thread_count = 1
            context.colorspace = Colorspace.ITU709
            context.color_primaries = ColorPrimaries.BT709
            context.color_trc = ColorTrc.BT709
            context.color_range = ColorRange.MPEG
            for image in frames:
                frame = av.VideoFrame.from_image(image)
                frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())

    return write_aside(path, write)


def save_animation(
    frames: Sequence[Image.Image], path: Path, *, fps: int, parameters: dict[str, Any]
) -> int:
    """Write frames as an animated WebP that repeats, whole or not at all; see ``save_mp4``."""
    first, *others = frames
    return write_aside(
        path,
        lambda file: first.save(
            file,
            format="WEBP",
            save_all=True,
            append_images=others,
            duration=round(1000 / fps),
            loop=0,
            quality=_WEBP_QUALITY,
            method=4,
            exif=exif_of(parameters),
        ),
    )

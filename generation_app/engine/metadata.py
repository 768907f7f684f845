"""What a file says about how it was made.

Two texts go into each picture: ``parameters``, in the form that AUTOMATIC1111 made common and most
programs read, and ``studio``, our own JSON, which is exact and complete. Neither holds a path.
``recall`` reads them back. Pillow only, no torch.

Source of the ``parameters`` form: stable-diffusion-webui, modules/processing.py (create_infotext)
and modules/infotext_utils.py (parse_generation_parameters).
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from generation_app.engine.vocabulary import SCHEDULERS

STUDIO_KEY = "studio"
A1111_KEY = "parameters"
FORMAT_VERSION = 1
_MAX_EXIF_BYTES = 60_000
_LIBRARIES = ("torch", "diffusers", "transformers", "peft")
NEGATIVE = "Negative prompt: "


@functools.cache
def library_versions() -> dict[str, str]:
    """Return the versions of the libraries on which a picture depends."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def a1111_text(parameters: dict[str, Any]) -> str:
    """Write resolved parameters in the form of AUTOMATIC1111.

    Args:
        parameters: Our own names: prompt, negative_prompt, num_inference_steps, guidance_scale,
            scheduler, seed, width, height, clip_skip, model {name, sha256}, loras [{name, weight,
            sha256}], libraries.
    """
    loras = parameters.get("loras", [])
    tags = "".join(f" <lora:{_tag_name(x['name'])}:{x['weight']:g}>" for x in loras)
    model = parameters["model"]
    pairs = {
        "Steps": parameters["num_inference_steps"],
        "Sampler": SCHEDULERS[parameters["scheduler"]].a1111,
        "CFG scale": f"{parameters['guidance_scale']:g}",
        "Seed": parameters["seed"],
        "Size": f"{parameters['width']}x{parameters['height']}",
        "Model hash": model["sha256"][:10],
        "Model": model["name"],
    }
    if "strength" in parameters:
        pairs["Denoising strength"] = f"{parameters['strength']:g}"
    if "mask_blur" in parameters:
        pairs["Mask blur"] = parameters["mask_blur"]
    if parameters.get("hires_scale", 1) > 1:
        pairs["Denoising strength"] = f"{parameters['hires_strength']:g}"
        pairs["Hires upscale"] = f"{parameters['hires_scale']:g}"
        pairs["Hires steps"] = parameters["hires_steps"]
        pairs["Hires upscaler"] = parameters["hires_upscaler"].capitalize()
    if parameters.get("clip_skip"):
        pairs["Clip skip"] = parameters["clip_skip"] + 1  # there 1 means the last layer
    if loras:
        hashes = (f"{_tag_name(x['name'])}: {x['sha256'][:12]}" for x in loras)
        pairs["Lora hashes"] = ", ".join(hashes)
    diffusers = parameters.get("libraries", {}).get("diffusers", "")
    pairs["Version"] = f"Studio (diffusers {diffusers})" if diffusers else "Studio"
    lines = [parameters["prompt"] + tags if parameters["prompt"] else tags.strip()]
    if parameters["negative_prompt"]:
        lines.append(NEGATIVE + parameters["negative_prompt"])
    lines.append(", ".join(f"{key}: {_quote(value)}" for key, value in pairs.items()))
    return "\n".join(lines)


def _tag_name(name: str) -> str:
    return re.sub(r"[:<>,\"\n]", "_", name)


def _quote(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:\n"]', text) else text


def own_json(parameters: dict[str, Any]) -> str:
    """Write resolved parameters as our own JSON, exact and complete."""
    return json.dumps(parameters, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def save_picture(image: Image.Image, path: Path, parameters: dict[str, Any]) -> int:
    """Write a picture with its parameters, whole or not at all.

    PNG and WebP keep the pixels exactly; JPEG is of quality 95 without chroma subsampling.

    Args:
        image: The picture.
        path: Where it goes; the folder exists and the suffix (png, webp, jpeg) names the format.
        parameters: Every resolved value, as plain JSON.

    Returns:
        The size of the file in bytes.

    Raises:
        OSError: The disk is full or gone; nothing is left behind.
    """
    options: dict[str, Any]
    if path.suffix == ".png":
        info = PngInfo()
        info.add_text(A1111_KEY, a1111_text(parameters))
        info.add_itxt(STUDIO_KEY, own_json(parameters))
        options = {"format": "PNG", "pnginfo": info}
    elif path.suffix == ".webp":
        options = {"format": "WEBP", "lossless": True, "exif": exif_of(parameters)}
    else:
        exif = exif_of(parameters)
        options = {"format": "JPEG", "quality": 95, "subsampling": 0, "exif": exif}
    return write_aside(path, lambda file: image.save(file, **options))


def exif_of(parameters: dict[str, Any]) -> bytes:
    """Return EXIF data that says how a picture was made, for formats without texts of their own.

    The form of AUTOMATIC1111 stands in ``UserComment``, as other programs expect it, and our JSON
    in ``MakerNote``. JPEG holds 64 KB of it; with prompts beyond that our JSON is left out.
    """
    exif = Image.Exif()
    inner = exif.get_ifd(ExifTags.IFD.Exif)
    comment = b""
    if "prompt" in parameters:
        comment = a1111_text(parameters).encode("utf-16-be")[:_MAX_EXIF_BYTES]
        inner[ExifTags.Base.UserComment] = b"UNICODE\0" + comment
    note = STUDIO_KEY.encode() + b"\0" + own_json(parameters).encode()
    if len(note) + len(comment) < _MAX_EXIF_BYTES:
        inner[ExifTags.Base.MakerNote] = note
    return exif.tobytes()


def write_aside(path: Path, write: Callable[[BinaryIO], object]) -> int:
    """Let a file be written under another name and bring it to its own when it is whole.

    Returns:
        Its size in bytes.

    Raises:
        OSError: The disk is full or gone; nothing is left behind.
    """
    aside = path.with_name(f".{path.name}.part")
    try:
        with aside.open("w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return path.stat().st_size

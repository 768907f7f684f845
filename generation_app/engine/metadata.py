"""What a file says about how it was made.

Two texts go into each picture: ``parameters``, in the form that AUTOMATIC1111 made common and most
programs read, and ``studio``, our own JSON, which is exact and complete. Neither holds a path. The
readers need Pillow only, no torch.

Source of the ``parameters`` form: stable-diffusion-webui, modules/processing.py (create_infotext)
and modules/infotext_utils.py (parse_generation_parameters).
"""

from __future__ import annotations

import functools
import json
import os
import re
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from generation_app.engine.vocabulary import SCHEDULERS, canonical_scheduler

STUDIO_KEY = "studio"
A1111_KEY = "parameters"
FORMAT_VERSION = 1
MAX_TEXT_CHARACTERS = 200_000
_MAX_EXIF_BYTES = 60_000
_LIBRARIES = ("torch", "diffusers", "transformers", "peft")

_NEGATIVE = "Negative prompt: "
_PAIR = re.compile(r'\s*([\w][\w \-/]*):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_LORA_TAG = re.compile(r"\s*<lora:([^:<>]+):(-?\d+(?:\.\d+)?)>")


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
    if parameters.get("clip_skip"):
        pairs["Clip skip"] = parameters["clip_skip"] + 1  # there 1 means the last layer
    if loras:
        hashes = (f"{_tag_name(x['name'])}: {x['sha256'][:12]}" for x in loras)
        pairs["Lora hashes"] = ", ".join(hashes)
    diffusers = parameters.get("libraries", {}).get("diffusers", "")
    pairs["Version"] = f"Studio (diffusers {diffusers})" if diffusers else "Studio"
    lines = [parameters["prompt"] + tags if parameters["prompt"] else tags.strip()]
    if parameters["negative_prompt"]:
        lines.append(_NEGATIVE + parameters["negative_prompt"])
    lines.append(", ".join(f"{key}: {_quote(value)}" for key, value in pairs.items()))
    return "\n".join(lines)


def _tag_name(name: str) -> str:
    return re.sub(r"[:<>,\"\n]", "_", name)


def _quote(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:\n"]', text) else text


def _unquote(text: str) -> str:
    text = text.strip()
    if len(text) < 2 or not (text.startswith('"') and text.endswith('"')):
        return text
    try:
        return str(json.loads(text))
    except ValueError:
        return text


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
    comment = a1111_text(parameters) if "prompt" in parameters else ""
    if comment:
        inner[ExifTags.Base.UserComment] = b"UNICODE\0" + comment.encode("utf-16-be")
    note = STUDIO_KEY.encode() + b"\0" + own_json(parameters).encode()
    if len(note) + 2 * len(comment) < _MAX_EXIF_BYTES:
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


def read_parameters(path: Path) -> dict[str, Any] | None:
    """Read how a picture was made.

    Args:
        path: A PNG of ours or of AUTOMATIC1111.

    Returns:
        Our own JSON if it is there, else what the ``parameters`` text tells, under our names; None
        if the file says nothing.

    Raises:
        OSError: The file is not a picture.
    """
    with warnings.catch_warnings():
        # Only the text is wanted: a large picture is not decoded, so its size is no danger.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as image:
                texts = dict(image.info)
        except (ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise OSError(f"cannot identify image file: {error}") from error
    own = texts.get(STUDIO_KEY)
    if isinstance(own, str) and len(own) <= MAX_TEXT_CHARACTERS:
        try:
            found = json.loads(own)
        except ValueError:
            found = None
        if isinstance(found, dict):
            return found
    text = texts.get(A1111_KEY)
    return parse_a1111(text) if isinstance(text, str) and text.strip() else None


def parse_a1111(text: str) -> dict[str, Any]:
    """Read the ``parameters`` text of AUTOMATIC1111 and programs that write like it.

    Args:
        text: The text, at most 200,000 characters of it are read.

    Returns:
        What was found, under our names; ``loras`` come from the tags in the prompt.
    """
    lines = text[:MAX_TEXT_CHARACTERS].strip().split("\n")
    pairs: dict[str, str] = {}
    if len(_PAIR.findall(lines[-1])) >= 3:
        pairs = {key.strip(): _unquote(value) for key, value in _PAIR.findall(lines.pop())}
    start = next((i for i, line in enumerate(lines) if line.startswith(_NEGATIVE.strip())), None)
    prompt = "\n".join(lines[:start])
    found: dict[str, Any] = {"negative_prompt": ""}
    if start is not None:
        found["negative_prompt"] = "\n".join(lines[start:]).removeprefix(_NEGATIVE.strip()).strip()
    found["loras"] = [
        {"name": name, "weight": float(weight)} for name, weight in _LORA_TAG.findall(prompt)
    ]
    found["prompt"] = _LORA_TAG.sub("", prompt).strip()
    found.update(_named(pairs))
    return found


def _named(pairs: dict[str, str]) -> dict[str, Any]:
    """Bring the pairs of the last line to our names; what cannot be read is left out."""
    found: dict[str, Any] = {}
    for key, name, kind in (
        ("Steps", "num_inference_steps", int),
        ("CFG scale", "guidance_scale", float),
        ("Seed", "seed", int),
    ):
        try:
            found[name] = kind(pairs[key])
        except (KeyError, ValueError):
            continue
    scheduler = canonical_scheduler(pairs.get("Sampler", ""), pairs.get("Schedule type", ""))
    if scheduler is not None:
        found["scheduler"] = scheduler
    if size := re.fullmatch(r"(\d{1,6})x(\d{1,6})", pairs.get("Size", "")):
        found["width"], found["height"] = int(size[1]), int(size[2])
    if (skip := pairs.get("Clip skip", "")).isdigit():
        found["clip_skip"] = max(int(skip) - 1, 0)
    if "Model" in pairs:
        found["model"] = {"name": pairs["Model"], "sha256": pairs.get("Model hash", "")}
    return found

"""Reads back how a picture was made: ours, AUTOMATIC1111's, InvokeAI's and ComfyUI's files.

What is found comes under our names; what cannot be read is left out, and whatever stands in a file
is only data. Pillow only, no torch. Which model of the site a name means is not decided here.

Sources: stable-diffusion-webui, modules/infotext_utils.py (parse_generation_parameters); InvokeAI,
invokeai/app/services/metadata (``invokeai_metadata``); ComfyUI, nodes.py and the ``prompt`` graph
that its SaveImage node writes.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from PIL import ExifTags, Image

from generation_app.engine.metadata import A1111_KEY, NEGATIVE, STUDIO_KEY
from generation_app.engine.vocabulary import canonical_scheduler
from generation_app.wording import take_loras

MAX_TEXT_CHARACTERS = 200_000
_PAIR = re.compile(r'\s*+(\w[\w \-/]*+):\s*+("(?:\\.|[^\\"])*+"|[^,]*+)(?:,|$)')
_MAX_LINKS = 50


@dataclass(frozen=True)
class Recalled:
    """What a file or a text says.

    Attributes:
        source: ``studio``, ``a1111``, ``invokeai`` or ``comfyui``.
        values: Under our names; ``model`` {name, sha256} and ``loras`` [{name, weight, sha256}].
    """

    source: str
    values: dict[str, Any]


def recall_picture(file: BinaryIO) -> Recalled | None:
    """Read how a picture was made.

    Args:
        file: A PNG, JPEG or WebP; its pixels are not decoded.

    Returns:
        What it says; None if it says nothing we can read.

    Raises:
        OSError: The file is not a picture.
    """
    texts = _texts_of(file)
    if isinstance(own := _json(texts.get(STUDIO_KEY, "")), dict):
        return Recalled("studio", own)
    if text := texts.get(A1111_KEY, "").strip():
        return Recalled("a1111", parse_a1111(text))
    if isinstance(invoke := _json(texts.get("invokeai_metadata", "")), dict):
        return Recalled("invokeai", parse_invokeai(invoke))
    if isinstance(graph := _json(texts.get("prompt", "")), dict) and (
        found := parse_comfyui(graph)
    ):
        return Recalled("comfyui", found)
    return None


def _texts_of(file: BinaryIO) -> dict[str, str]:
    """Return the texts of a picture by their key, whatever the format calls them."""
    with warnings.catch_warnings():
        # Only the texts are wanted: a large picture is not decoded, so its size is no danger.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image:
                texts = {
                    key: value
                    for key, value in image.info.items()
                    if isinstance(key, str) and isinstance(value, str)
                }
                # Pillow would decode a PNG to see whether EXIF data follows its pixels.
                plain = image.format == "PNG" and "exif" not in image.info
                exif = Image.Exif() if plain else image.getexif()
                inner = exif.get_ifd(ExifTags.IFD.Exif)
        except (ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise OSError(f"cannot identify image file: {error}") from error
    comment = inner.get(ExifTags.Base.UserComment)
    if isinstance(comment, bytes) and comment[:8] == b"UNICODE\0":
        texts.setdefault(A1111_KEY, comment[8:].decode("utf-16-be", "replace"))
    note = inner.get(ExifTags.Base.MakerNote)
    if isinstance(note, bytes) and note.startswith(STUDIO_KEY.encode() + b"\0"):
        texts.setdefault(STUDIO_KEY, note[len(STUDIO_KEY) + 1 :].decode("utf-8", "replace"))
    model = exif.get(ExifTags.Base.Model)
    if isinstance(model, str) and model.startswith("prompt:"):  # ComfyUI's WebP
        texts.setdefault("prompt", model.removeprefix("prompt:"))
    return texts


def _json(text: str) -> Any:
    """Parse JSON; None where it is none, or holds what is no text."""
    if not text or len(text) > MAX_TEXT_CHARACTERS:
        return None
    try:
        # ComfyUI writes NaN where a node says that it always changes.
        value = json.loads(text, parse_constant=lambda _: None)
        # Half of a surrogate pair can be escaped in JSON, and neither stored nor sent.
        json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError):
        return None


# --- AUTOMATIC1111 --------------------------------------------------------------------------------
def parse_a1111(text: str) -> dict[str, Any]:
    """Read the ``parameters`` text of AUTOMATIC1111 and programs that write like it.

    Args:
        text: The text, at most 200,000 characters of it are read.

    Returns:
        What was found, under our names; ``loras`` come from the tags in the prompt.
    """
    lines = text[:MAX_TEXT_CHARACTERS].strip().split("\n")
    pairs = _pairs(lines[-1])
    if len(pairs) >= 3:
        lines.pop()
    else:
        pairs = {}
    start = next((i for i, line in enumerate(lines) if line.startswith(NEGATIVE.strip())), None)
    prompt = "\n".join(lines[:start])
    found: dict[str, Any] = {"negative_prompt": ""}
    if start is not None:
        found["negative_prompt"] = "\n".join(lines[start:]).removeprefix(NEGATIVE.strip()).strip()
    prompt, tags = take_loras(prompt)
    found["loras"] = [{"name": tag.name, "weight": _weight(tag.weight)} for tag in tags]
    found["prompt"] = prompt.strip()
    found.update(_named(pairs))
    return found


def _pairs(line: str) -> dict[str, str]:
    """Read the pairs of a line from left to right, in time that grows with its length alone."""
    found, place = {}, 0
    while place < len(line):
        if match := _PAIR.match(line, place):
            found[match[1].strip()] = _unquote(match[2])
            place = match.end()
        else:
            place = line.find(",", place) + 1 or len(line)
    return found


def _unquote(text: str) -> str:
    text = text.strip()
    if len(text) < 2 or not (text.startswith('"') and text.endswith('"')):
        return text
    inner = _json(text)
    return text if inner is None else str(inner)


def _named(pairs: dict[str, str]) -> dict[str, Any]:
    """Bring the pairs of the last line to our names; what cannot be read is left out."""
    hires = "Hires upscale" in pairs
    found: dict[str, Any] = {}
    for key, name, kind in (
        ("Steps", "num_inference_steps", int),
        ("CFG scale", "guidance_scale", float),
        ("Seed", "seed", int),
        ("Denoising strength", "hires_strength" if hires else "strength", float),
        ("Mask blur", "mask_blur", int),
        ("Hires upscale", "hires_scale", float),
        ("Hires steps", "hires_steps", int),
    ):
        try:
            found[name] = kind(pairs[key])
        except (KeyError, ValueError):
            continue
    if hires:
        latent = "latent" in pairs.get("Hires upscaler", "").lower()
        found["hires_upscaler"] = "latent" if latent else "lanczos"
    scheduler = canonical_scheduler(pairs.get("Sampler", ""), pairs.get("Schedule type", ""))
    if scheduler is not None:
        found["scheduler"] = scheduler
    if size := re.fullmatch(r"(\d{1,6})x(\d{1,6})", pairs.get("Size", "")):
        found["width"], found["height"] = int(size[1]), int(size[2])
    if (skip := pairs.get("Clip skip", "")).isdecimal() and len(skip) < 4:
        found["clip_skip"] = max(int(skip) - 1, 0)
    if "Model" in pairs:
        found["model"] = {"name": pairs["Model"], "sha256": pairs.get("Model hash", "")}
    return found


# --- InvokeAI -------------------------------------------------------------------------------------
def parse_invokeai(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Read the metadata that InvokeAI writes since its third version."""
    found: dict[str, Any] = {}
    for key, name, kinds in (
        ("positive_prompt", "prompt", (str,)),
        ("negative_prompt", "negative_prompt", (str,)),
        ("width", "width", (int,)),
        ("height", "height", (int,)),
        ("seed", "seed", (int,)),
        ("steps", "num_inference_steps", (int,)),
        ("cfg_scale", "guidance_scale", (int, float)),
        ("strength", "strength", (int, float)),
        ("clip_skip", "clip_skip", (int,)),
    ):
        if isinstance(value := metadata.get(key), kinds) and not isinstance(value, bool):
            found[name] = value
    sampler = metadata.get("scheduler")
    if isinstance(sampler, str) and (known := canonical_scheduler(sampler)):
        found["scheduler"] = known
    if (model := _model_of(metadata.get("model"))) is not None:
        found["model"] = model
    entries = metadata.get("loras")
    found["loras"] = []
    for entry in entries if isinstance(entries, list) else []:
        lora = _model_of(entry.get("model", entry.get("lora"))) if _is_object(entry) else None
        if lora is not None:
            found["loras"].append({**lora, "weight": _weight(entry.get("weight"))})
    return found


def _model_of(entry: Any) -> dict[str, Any] | None:
    if not _is_object(entry):
        return None
    name = entry.get("name", entry.get("model_name"))
    digest = str(entry.get("hash") or "")
    if not isinstance(name, str):
        return None
    sha256 = digest.removeprefix("sha256:") if digest.startswith("sha256:") else ""
    return {"name": name, "sha256": sha256}


# --- ComfyUI --------------------------------------------------------------------------------------
def parse_comfyui(graph: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the graph that ComfyUI writes: its first sampler and what leads to it.

    Returns:
        What was found, under our names; None without a sampler. Nodes of extensions are followed
        where they name their inputs like the ordinary ones.
    """
    nodes = {str(key): node for key, node in graph.items() if _is_object(node)}
    samplers = [
        node
        for node in nodes.values()
        if str(node.get("class_type", "")).startswith(("KSampler", "SamplerCustom"))
    ]
    if not samplers:
        return None
    given = _inputs(samplers[0])
    found: dict[str, Any] = {"loras": []}
    for key, name, kind in (
        ("steps", "num_inference_steps", int),
        ("cfg", "guidance_scale", float),
        ("seed", "seed", int),
        ("noise_seed", "seed", int),
    ):
        value = _value(nodes, given.get(key))
        if usable_number(value) is not None:
            found[name] = kind(value)
    denoise = usable_number(_value(nodes, given.get("denoise")))
    if denoise is not None and denoise < 1:
        found["strength"] = denoise
    sampler, spacing = given.get("sampler_name"), given.get("scheduler")
    if isinstance(sampler, str) and (
        known := canonical_scheduler(sampler, spacing if isinstance(spacing, str) else "")
    ):
        found["scheduler"] = known
    for key, name in (("positive", "prompt"), ("negative", "negative_prompt")):
        text = _search(
            nodes, given.get(key), ("text", "text_g"), ("conditioning", "conditioning_1")
        )
        if isinstance(text, str):
            found[name] = text
    latent = _inputs(_node(nodes, given.get("latent_image")))
    for side in ("width", "height"):
        if isinstance(size := _value(nodes, latent.get(side)), int):
            found[side] = size
    _follow_models(nodes, given.get("model"), found)
    return found


def _follow_models(nodes: Mapping[str, Any], link: Any, found: dict[str, Any]) -> None:
    """Walk from a sampler through its LoRAs to the checkpoint."""
    for _ in range(_MAX_LINKS):
        given = _inputs(_node(nodes, link))
        if isinstance(name := given.get("lora_name"), str):
            weight = _weight(_value(nodes, given.get("strength_model")))
            found["loras"].insert(0, {"name": _stem(name), "weight": weight})
        if isinstance(name := given.get("ckpt_name", given.get("unet_name")), str):
            found["model"] = {"name": _stem(name), "sha256": ""}
            return
        link = given.get("model")


def _search(
    nodes: Mapping[str, Any], link: Any, wanted: tuple[str, ...], onward: tuple[str, ...]
) -> Any:
    """Follow links until a node has one of the wanted inputs, and return its value."""
    for _ in range(_MAX_LINKS):
        given = _inputs(_node(nodes, link))
        for key in wanted:
            if key in given:
                return _value(nodes, given[key])
        link = next((given[key] for key in onward if key in given), None)
    return None


def _value(nodes: Mapping[str, Any], value: Any) -> Any:
    """Return a value, or that of the node it is linked to."""
    for _ in range(_MAX_LINKS):
        if not isinstance(value, list):
            return value
        given = _inputs(_node(nodes, value))
        keys = ("value", "text", "string", "seed", "int", "float")
        value = next((given[key] for key in keys if key in given), None)
    return None


def _node(nodes: Mapping[str, Any], link: Any) -> Any:
    return nodes.get(str(link[0])) if isinstance(link, list) and link else None


def _inputs(node: Any) -> dict[str, Any]:
    inputs: Any = node.get("inputs") if _is_object(node) else None
    return dict(inputs) if _is_object(inputs) else {}


def _stem(name: str) -> str:
    return re.sub(r"\.(safetensors|ckpt|pt)$", "", re.split(r"[\\/]", name)[-1])


def _weight(value: Any) -> float:
    number = usable_number(value)
    return 1.0 if number is None else number


def usable_number(value: Any) -> float | None:
    """Return a number from a file if it can be counted with, else None."""
    if type(value) not in (int, float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)

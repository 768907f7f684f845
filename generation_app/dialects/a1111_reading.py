"""Requests in the form of AUTOMATIC1111, brought to our words; nothing is looked up."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from io import BytesIO
from typing import Any

from django.conf import settings
from django.utils.translation import gettext as _
from PIL import Image, ImageOps

from generation_app.dialects.adapter import Wish
from generation_app.models import GenerationJob
from studio_project.api import Problem

CHECKPOINT = "sd_model_checkpoint"
CLIP_SKIP = "CLIP_stop_at_last_layers"
# These reach the platform under the names they came with, so that its errors name them.
PASSED_ON = ("prompt", "negative_prompt", "width", "height", "steps", "cfg_scale", "seed")
SAMPLER = ("sampler_name", "sampler_index")
BATCH = ("batch_size", "n_iter")
READ = frozenset({*PASSED_ON, *SAMPLER, *BATCH, "scheduler", "send_images", "override_settings"})
HIRES = frozenset({"hr_scale", "hr_second_pass_steps", "hr_upscaler", "denoising_strength"})
SWITCH, INVERT = "enable_hr", "inpainting_mask_invert"
INPUTS = frozenset({"init_images", "mask", INVERT, SWITCH})


def read_request(body: Mapping[str, Any], own: frozenset[str]) -> tuple[Wish, Any]:
    """Translate what all painting takes.

    Args:
        body: The request as it came.
        own: The fields that this kind of painting takes besides.

    Returns:
        The wish without its model, and the checkpoint that the settings name, or None.

    Raises:
        Problem: `invalid`.
    """
    given = {name: value for name, value in body.items() if value is not None}
    overrides = given.get("override_settings", {})
    if not isinstance(overrides, Mapping):
        message = _("This has to be an object.")
        raise Problem("invalid", message, fields={"override_settings": [message]})
    overrides = {name: value for name, value in overrides.items() if value is not None}
    ignored = set(given) - READ - own
    ignored |= {f"override_settings.{name}" for name in set(overrides) - {CHECKPOINT, CLIP_SKIP}}
    wish = {name: given[name] for name in (*PASSED_ON, *sorted(own - INPUTS)) if name in given}
    wish |= _images(given) | _clip_skip(overrides)
    samplers = [name for name in SAMPLER if given.get(name)]
    if samplers:
        wish |= {name: given[name] for name in (samplers[0], "scheduler") if name in given}
    elif "scheduler" in given:
        ignored.add("scheduler")  # there it qualifies a sampler
    return Wish(wish, sorted(ignored)), overrides.get(CHECKPOINT)


def hires_fields(body: Mapping[str, Any]) -> frozenset[str]:
    """Return the fields that say how a picture is enlarged and refined, if it shall be."""
    return HIRES | {SWITCH} if body.get(SWITCH) else frozenset()


def started_fields(body: Mapping[str, Any]) -> frozenset[str]:
    """Return the fields of a request that starts from a picture."""
    fields = {"init_images", "denoising_strength"}
    if body.get("mask") is not None:
        fields |= {"mask", "mask_blur", INVERT}
    return frozenset(fields)


def mode_of(body: Mapping[str, Any]) -> str:
    """Return what a request that starts from a picture asks for."""
    modes = GenerationJob.Mode
    return modes.IMAGE_TO_IMAGE if body.get("mask") is None else modes.INPAINT


def input_files(body: Mapping[str, Any]) -> dict[str, tuple[str, BytesIO]]:
    """Return the pictures of a request: the name the platform takes, its name there, its file.

    Raises:
        Problem: `invalid`: there is not exactly one picture, or something is not base64.
    """
    pictures = body.get("init_images")
    if not isinstance(pictures, list) or len(pictures) != 1:
        message = _("Send exactly one picture to start from.")
        raise Problem("invalid", message, fields={"init_images": [message]})
    files = {"image": ("init_images", _decode(pictures[0], "init_images"))}
    if (mask := body.get("mask")) is not None:
        file = _decode(mask, "mask")
        files["mask"] = ("mask", _inverted(file) if body.get(INVERT) else file)
    return files


def _decode(text: Any, field: str) -> BytesIO:
    """Return the file behind base64, with or without `data:image/png;base64,` before it."""
    try:
        content = base64.b64decode(str(text).rpartition(",")[2], validate=True)
    except ValueError:
        content = b""
    if not isinstance(text, str) or not content:
        message = _("This has to be a picture as base64.")
        raise Problem("invalid", message, fields={field: [message]})
    return BytesIO(content)


def _inverted(mask: BytesIO) -> BytesIO:
    """Return a mask with black and white exchanged."""
    kept = BytesIO()
    try:
        with Image.open(mask) as picture:
            if picture.width * picture.height > settings.STUDIO_MAX_PIXELS:
                raise Image.DecompressionBombError
            ImageOps.invert(picture.convert("L")).save(kept, "PNG")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        message = _("This has to be a picture as base64.")
        raise Problem("invalid", message, fields={"mask": [message]}) from error
    kept.seek(0)
    return kept


def _images(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return how many pictures are asked for: there it is a product."""
    counts = {name: given[name] for name in BATCH if name in given}
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            return {name: value}  # the platform says what is wrong with it
    if not counts:
        return {}
    return {"batch_size": counts.get("batch_size", 1) * counts.get("n_iter", 1)}


def _clip_skip(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return how many layers are left out: there 1 means none."""
    value = overrides.get(CLIP_SKIP)
    if value is None:
        return {}
    whole = isinstance(value, int) and not isinstance(value, bool)
    return {"clip_skip": max(value - 1, 0) if whole and value >= 0 else value}

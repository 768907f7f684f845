"""Which requests may share a batch of the UNet, and how many pictures a batch may hold.

Requests of any users are denoised together if they have the base, its LoRAs, size, steps and noise
scheduler in common; each keeps its own words, seed, guidance and end. Company changes a picture by
a rounding (DESIGN §13), so whoever needs every bit asks to run alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from django.utils.translation import gettext as _

from models_app.models import DiffusionModel
from studio_project.api import Problem
from studio_project.models import Worker

MOST_PICTURES = 8
# On a CPU larger pictures take no less time together (see docs/benchmarks.md).
CPU_PIXELS = 4 * 128 * 128
# What one more picture needs in half precision, both halves of guidance.
GPU_BYTES_PER_PIXEL = 1024


def take_run_alone(body: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Split off a request whether it asks to run alone.

    Raises:
        Problem: `invalid` if that is neither true nor false.
    """
    body = dict(body)
    run_alone = body.pop("run_alone", False)
    if not isinstance(run_alone, bool):
        message = _("This has to be true or false.")
        raise Problem("invalid", message, fields={"run_alone": [message]})
    return body, run_alone


def joint_key(
    mode: str, parameters: Mapping[str, Any], base: DiffusionModel, models: Sequence[DiffusionModel]
) -> str:
    """Return what requests that may share a batch have in common; empty for one that runs alone.

    Args:
        mode: The mode of the request.
        parameters: Its resolved values.
        base: What it is painted with.
        models: All that it needs, its LoRAs among them.
    """
    # What starts from a picture keeps the timesteps of its own strength, so that it is not at the
    # same one as others; a base for inpainting is used for nothing else.
    alone = parameters.get("run_alone") or mode != "text-to-image"
    if alone or parameters.get("hires_scale", 1.0) > 1 or not base.sha256:
        return ""
    hashes = {model.pk: model.sha256 for model in models}
    loras = [(hashes[entry["id"]], entry["weight"]) for entry in parameters["loras"]]
    shape = [parameters[x] for x in ("width", "height", "num_inference_steps", "scheduler")]
    return hashlib.sha256(json.dumps([base.sha256, loras, shape]).encode()).hexdigest()


def room_for(
    parameters: Mapping[str, Any], required_bytes: int, worker: Worker, free_bytes: int | None
) -> int:
    """Return how many pictures of a request's shape a worker may have at work at a time.

    Args:
        parameters: The resolved values.
        required_bytes: What the request's models need.
        worker: Who would do it.
        free_bytes: What its device can hold at the moment; None if that is no question.
    """
    pixels = parameters["width"] * parameters["height"]
    if worker.is_cpu:
        return max(1, min(MOST_PICTURES, CPU_PIXELS // pixels))
    memory = worker.memory_bytes if free_bytes is None else free_bytes
    fit = (memory - required_bytes) // (pixels * GPU_BYTES_PER_PIXEL)
    return max(1, min(MOST_PICTURES, fit))

"""Reads one request of the worker; the engine trusts nobody, so all of it is checked once more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from generation_app.engine.adapters import LoraFile
from generation_app.engine.errors import EngineError, RequestError
from generation_app.engine.request import (
    MODES,
    SEED_COUNT,
    GenerationRequest,
    Limits,
    TextToImageRequest,
    field_names,
    resolve_request,
)

# The site's limits are tighter; these only keep nonsense from the networks.
_ENGINE_LIMITS = Limits(
    max_side=8192, max_pixels=8192 * 8192, max_images=256, max_prompt_characters=20_000
)


@dataclass(frozen=True)
class Order:
    """One request of the worker, checked.

    Attributes:
        mode: A key of ``MODES``.
        request: Its values.
        seeds: One for each image.
        prompts: One for each image; empty for modes without words.
        inputs: The pictures it starts from, by field.
        loras: What is put onto the base.
        base_folder: The base model's diffusers folder.
        base_sha256: By which the base is known.
        base_name: What people call it.
        architecture: Its family.
        output_folder: Where files go.
        device: Where to compute.
        threads: How many threads a CPU may use.
        memory_bytes: What of the device's memory it may use; 0 for all of it.
        preview: Whether previews are wanted.
        metadata: What else shall stand in the files.
        together: How many of its pictures may be at work at a time.
    """

    mode: str
    request: GenerationRequest
    seeds: tuple[int, ...]
    prompts: tuple[str, ...]
    inputs: dict[str, Path]
    loras: tuple[LoraFile, ...]
    base_folder: Path
    base_sha256: str
    base_name: str
    architecture: str
    output_folder: Path
    device: str
    threads: int
    memory_bytes: int
    preview: bool
    metadata: dict[str, Any]
    together: int

    @property
    def company_key(self) -> tuple[Any, ...] | None:
        """What requests that are painted together have in common; None for one that cannot be."""
        request = self.request
        if not isinstance(request, TextToImageRequest) or request.hires_size is not None:
            return None
        loras = tuple((lora.sha256, lora.weight) for lora in self.loras)
        network = (self.base_sha256, loras, self.device, self.threads)
        return *request.size, request.num_inference_steps, request.scheduler, *network


def read_order(message: Mapping[str, Any]) -> Order:
    """Check a request of the worker.

    Raises:
        EngineError: ``invalid_request`` naming the field, or ``mode_unavailable``.
    """
    mode = str(message.get("mode", "text-to-image"))
    if mode not in MODES:
        raise EngineError("mode_unavailable", mode=mode[:50])
    seeds = _seeds(message)
    architecture = _text(message, "architecture")
    names = field_names(mode) - {"loras", "seed", "num_images"}
    body = {name: value for name, value in message.items() if name in names}
    body |= {"seed": seeds[0], "num_images": len(seeds)}
    try:
        request = resolve_request(body, architecture=architecture, mode=mode, limits=_ENGINE_LIMITS)
    except RequestError as error:
        raise EngineError("invalid_request", field=error.field, reason=error.code) from error
    metadata = message.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise EngineError("invalid_request", field="metadata")
    return Order(
        mode=mode,
        request=request,
        seeds=seeds,
        prompts=_prompts(message, request, len(seeds)),
        inputs={name: Path(_text(message, name)) for name in MODES[mode].inputs},
        loras=tuple(_lora(entry) for entry in message.get("loras") or ()),
        base_folder=Path(_text(message, "base_folder")),
        base_sha256=_text(message, "base_sha256"),
        base_name=str(metadata.get("base_name") or message.get("model_name") or ""),
        architecture=architecture,
        output_folder=Path(_text(message, "output_folder")),
        device=_device(message),
        threads=_count(message, "threads"),
        memory_bytes=_memory_bytes(message),
        preview=bool(message.get("preview", False)),
        metadata=metadata,
        together=_count(message, "together"),
    )


def _text(message: Mapping[str, Any], field: str) -> str:
    value = message.get(field)
    if not isinstance(value, str) or not value:
        raise EngineError("invalid_request", field=field)
    return value


def _count(message: Mapping[str, Any], field: str) -> int:
    count = message.get(field, 1)
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= 1024:
        raise EngineError("invalid_request", field=field)
    return count


def _seeds(message: Mapping[str, Any]) -> tuple[int, ...]:
    seeds = message.get("seeds")
    if not isinstance(seeds, list) or not seeds:
        raise EngineError("invalid_request", field="seeds")
    if any(type(seed) is not int or not 0 <= seed < SEED_COUNT for seed in seeds):
        raise EngineError("invalid_request", field="seeds")
    return tuple(seeds)


def _prompts(message: Mapping[str, Any], request: GenerationRequest, count: int) -> tuple[str, ...]:
    """Return one prompt for each image; without a list of them all images share one."""
    shared = getattr(request, "prompt", None)
    if shared is None:
        return ()
    prompts = message.get("prompts") or [shared] * count
    if not isinstance(prompts, list) or len(prompts) != count:
        raise EngineError("invalid_request", field="prompts")
    longest = _ENGINE_LIMITS.max_prompt_characters
    if any(not isinstance(prompt, str) or len(prompt) > longest for prompt in prompts):
        raise EngineError("invalid_request", field="prompts")
    return tuple(prompts)


def _device(message: Mapping[str, Any]) -> str:
    device = str(message.get("device") or "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise EngineError("invalid_request", field="device") from error
    return device


def _memory_bytes(message: Mapping[str, Any]) -> int:
    size = message.get("memory_bytes", 0)
    if type(size) is not int or size < 0:
        raise EngineError("invalid_request", field="memory_bytes")
    return size


def _lora(entry: Any) -> LoraFile:
    try:
        lora = LoraFile(
            path=Path(entry["path"]),
            sha256=str(entry["sha256"]),
            weight=float(entry.get("weight", 1.0)),
            name=str(entry.get("name") or "LoRA"),
        )
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise EngineError("invalid_request", field="loras") from error
    if not abs(lora.weight) <= _ENGINE_LIMITS.max_lora_weight:  # also refuses NaN
        raise EngineError("invalid_request", field="loras")
    return lora

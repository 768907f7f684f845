"""The weights file that a training leaves: written, and proven by loading it again.

The layout is diffusers'. The header carries the adapters' own settings, without which a
reader takes alpha for rank. ``models_app.kohya_file`` makes of it the same for other
programs, and what is proven here is proven of both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models_app.adapter_loading import (
    AdapterError,
    layer_names,
    put_on,
    read_adapter,
    worn_by,
)
from models_app.inspection import inspect_adapter
from models_app.loading import load_pipeline
from studio_project.child_protocol import ChildError
from training_app.trainer.adapters import adapter_settings
from training_app.trainer.config import TrainingConfig
from training_app.trainer.files import CorruptFileError, pack_tensors, read_tensors, write_file
from training_app.trainer.header import describe
from training_app.trainer.request import TrainingRequest

#: CLIP without a projection lost this level in transformers 5; files have it always.
_TEXT_LEVEL = "text_encoder.text_model."
_UNET_PARTS = {".lora_A.": ".lora.down.", ".lora_B.": ".lora.up."}
_TEXT_PARTS = {".lora_A.": ".lora_linear_layer.down.", ".lora_B.": ".lora_linear_layer.up."}
_TO_PEFT = {theirs: ours for parts in (_UNET_PARTS, _TEXT_PARTS) for ours, theirs in parts.items()}


def diffusers_name(name: str) -> str:
    """What diffusers' layout calls a tensor of an adapter.

    Args:
        name: Component, layer and peft's part, such as ``unet.mid.to_q.lora_A.weight``.
    """
    parts = _UNET_PARTS if name.startswith("unet.") else _TEXT_PARTS
    for ours, theirs in parts.items():
        name = name.replace(ours, theirs)
    if name.startswith("text_encoder.") and not name.startswith(_TEXT_LEVEL):
        name = _TEXT_LEVEL + name.removeprefix("text_encoder.")
    return name


def _settings(names: Iterable[str], request: TrainingRequest) -> dict[str, Any]:
    """The adapters' settings by component and peft's name."""
    # Some readers leave the layers in training mode, where they would drop values out.
    return {
        f"{component}.{name}": value
        for component in sorted({name.partition(".")[0] for name in names})
        for name, value in (
            adapter_settings(request.config, component) | {"lora_dropout": 0.0}
        ).items()
    }


def export_lora(
    path: Path, parameters: Mapping[str, torch.Tensor], request: TrainingRequest, step: int
) -> None:
    """Writes adapters as one safetensors file that plain diffusers loads.

    Args:
        path: Where it goes.
        parameters: The adapters by component, layer and peft's part of the name, such as
            ``text_encoder.encoder.layers.0.mlp.fc1.lora_A.weight``.
        request: The run, for the words of the header.
        step: Optimizer steps done.

    Raises:
        ChildError: ``non_finite_loss`` if a weight is not finite; nothing is written.
        OSError: If the file cannot be written; nothing is left behind.
    """
    if not all(bool(torch.isfinite(weight).all()) for weight in parameters.values()):
        raise ChildError("non_finite_loss")
    weights = {diffusers_name(name): value.detach() for name, value in parameters.items()}
    words = describe(request, weights, step) | {
        "lora_adapter_metadata": json.dumps(_settings(parameters, request), sort_keys=True)
    }
    write_file(path, pack_tensors(weights, words))


def read_lora(path: Path) -> dict[str, torch.Tensor]:
    """Reads what :func:`export_lora` wrote: the adapters by name.

    Raises:
        CorruptFileError: If the file is damaged.
        FileNotFoundError: If it is not there.
    """
    weights, _ = read_tensors(path)
    return {_own_name(name): value for name, value in weights.items()}


def _own_name(name: str) -> str:
    for theirs, ours in _TO_PEFT.items():
        name = name.replace(theirs, ours)
    return name.replace(_TEXT_LEVEL, "text_encoder.", 1) if name.startswith(_TEXT_LEVEL) else name


@dataclass(frozen=True)
class RenderSettings:
    """One picture that is rendered alike in two places.

    Attributes:
        prompt: What it shows.
        seed: Of its noise.
        config: Size, steps and guidance.
    """

    prompt: str
    seed: int
    config: TrainingConfig


@torch.no_grad()
def render(
    pipeline: Any, settings: RenderSettings, *, on_step: Callable[[], None], **arguments: Any
) -> np.ndarray:
    """Renders one picture.

    Args:
        pipeline: A text-to-image pipeline.
        settings: What and how.
        on_step: Is called after every denoising step; may raise to break off.
        **arguments: More for the pipeline, such as ready prompt embeddings.

    Returns:
        Pixels (H, W, 3) in 0…1.
    """

    def after_step(*given: Any) -> dict[str, Any]:
        on_step()
        tensors: dict[str, Any] = given[-1]
        return tensors

    config = settings.config
    pixels: np.ndarray = pipeline(
        width=config.resolution,
        height=config.resolution,
        num_inference_steps=config.sample_inference_steps,
        guidance_scale=config.sample_guidance_scale,
        generator=torch.Generator().manual_seed(settings.seed),
        output_type="np",
        callback_on_step_end=after_step,
        **({"prompt": settings.prompt} if "prompt_embeds" not in arguments else {}),
        **arguments,
    ).images[0]
    return pixels


def verify_export(
    paths: Sequence[Path],
    parameters: Mapping[str, torch.Tensor],
    request: TrainingRequest,
    settings: RenderSettings,
    *,
    dtype: torch.dtype,
    on_step: Callable[[], None],
) -> list[np.ndarray]:
    """Loads weights files into a plain pipeline, one after the other, and renders with each.

    Args:
        paths: The files, in any layout.
        parameters: What each should hold, by name.
        request: The run.
        settings: The picture.
        dtype: What the pipeline computes in.
        on_step: Is called after every denoising step; may raise to break off.

    Returns:
        Pixels (H, W, 3) in 0…1 for each file.

    Raises:
        CorruptFileError: If the pipeline does not end up with exactly these adapters, or
            a picture is not finite.
    """
    pipeline = load_pipeline(
        request.base_folder, request.architecture, dtype=dtype, device=request.device
    )
    names = layer_names(pipeline)
    pictures = []
    for number, path in enumerate(paths):
        adapter = f"checked{number}"
        _load(pipeline, path, adapter, names)
        _require_equal(pipeline, adapter, parameters, request.config.alpha)
        pixels = render(pipeline, settings, on_step=on_step)
        if not np.isfinite(pixels).all():
            raise CorruptFileError(f"a picture made with {path.name} is not finite")
        pictures.append(pixels)
        pipeline.delete_adapters(adapter)
    return pictures


def _load(pipeline: Any, path: Path, adapter: str, names: Mapping[str, Mapping[str, str]]) -> None:
    """Loads as other people's programs do: diffusers' layout by diffusers itself."""
    if inspect_adapter(path).layout == "diffusers":
        pipeline.load_lora_weights(
            path.parent, weight_name=path.name, adapter_name=adapter, local_files_only=True
        )
        return
    try:
        put_on(pipeline, read_adapter(path, names), adapter)
    except AdapterError as error:
        raise CorruptFileError(f"{path.name} does not fit its base: {error}") from error


def _require_equal(
    pipeline: Any, adapter: str, parameters: Mapping[str, torch.Tensor], alpha: float
) -> None:
    found = {}
    for component, layer, module in worn_by(pipeline, adapter):
        for kind in ("lora_A", "lora_B", "lora_magnitude_vector"):
            held = getattr(module, kind)
            if adapter in held:
                found[f"{component}.{layer}.{kind}.weight"] = held[adapter].weight
        # A file holds alpha in fp32.
        if not math.isclose(module.scaling[adapter], alpha / module.r[adapter], rel_tol=1e-6):
            raise CorruptFileError("the weights file has lost its alpha")
    if set(found) != set(parameters):
        raise CorruptFileError("the weights file fills other layers than were trained")
    for name, value in found.items():
        if not torch.equal(value, parameters[name].to(value)):
            raise CorruptFileError(f"{name} is not what was trained")

"""The weights file in kohya's layout, as A1111, Forge, ComfyUI and kohya's own tools read it.

A writer of our own: diffusers' converter writes the rank as alpha, leaves a level out of the
names of text encoders and keeps peft's names for DoRA.

Readers differ about DoRA. A ``dora_scale`` here is what LyCORIS defines: the lengths of the
rows of the whole weight, W + alpha / r · up · down. ComfyUI and Forge divide by the lengths
of W alone, which comes close for small changes; A1111 takes columns for rows and paints
something else. Nothing that a file could say brings the three together.

Shape legend: r rank, in and out the layer's channels, k its kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from models_app.adapter_names import kohya_layer
from models_app.inspection import read_json
from training_app.trainer.files import pack_tensors, write_file
from training_app.trainer.header import describe
from training_app.trainer.request import TrainingRequest

_PARTS = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_magnitude_vector.weight": "dora_scale",
}


def kohya_tensors(
    parameters: Mapping[str, torch.Tensor], request: TrainingRequest
) -> dict[str, torch.Tensor]:
    """Adapters under kohya's names.

    Args:
        parameters: The adapters by component, layer and peft's part of the name.
        request: The run.

    Returns:
        ``.lora_down.weight`` (r, in) or (r, in, k, k), ``.lora_up.weight`` (out, r) or
        (out, r, 1, 1), ``.alpha`` () and ``.dora_scale`` (out, 1) or (out, 1, 1, 1).

    Raises:
        ValueError: If the layout has no name for a layer.
    """
    unet_config = read_json(request.base_folder / "unet" / "config.json")
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        place, part = name.split(".lora_", 1)
        component, layer = place.split(".", 1)
        key = kohya_layer(request.architecture, component, layer, unet_config)
        part = _PARTS[f"lora_{part}"]
        value = parameter.detach()
        if part == "dora_scale":
            sides = parameters[f"{place}.lora_B.weight"].ndim - 1
            value = value.reshape(-1, *(1 for _ in range(sides)))
        tensors[f"{key}.{part}"] = value
        tensors[f"{key}.alpha"] = torch.tensor(request.config.alpha, dtype=value.dtype)
    return tensors


def export_kohya(
    path: Path, parameters: Mapping[str, torch.Tensor], request: TrainingRequest, step: int
) -> None:
    """Writes adapters as one safetensors file in kohya's layout.

    Args:
        path: Where it goes.
        parameters: The adapters, all of them finite.
        request: The run.
        step: Optimizer steps done.

    Raises:
        ValueError: If the layout has no name for a layer.
        OSError: If the file cannot be written; nothing is left behind.
    """
    tensors = kohya_tensors(parameters, request)
    write_file(path, pack_tensors(tensors, describe(request, tensors, step)))

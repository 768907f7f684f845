"""Reads LoRA files of every layout and puts them on a pipeline's networks; no Django.

Why not diffusers' loader: of kohya's files it loses text-encoder layers in some combinations and
every DoRA magnitude, and what finds no place it leaves out with a line in the log. Here a file
fits as a whole or is refused. What an adapter computes is peft's, so it equals diffusers'.

Shape legend: r rank, in and out the layer's channels, k its kernel.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors import safe_open

from models_app.adapter_names import (
    ALPHA,
    DOWN,
    MAGNITUDE,
    UP,
    block_name,
    flat_layer,
    parse_tensor_name,
)
from models_app.inspection import adapter_settings

#: The networks of a pipeline that can wear an adapter.
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")


class AdapterError(Exception):
    """A file that does not fit a pipeline.

    Args:
        reason: Stable name: ``other_layers``, ``other_shapes``, ``unknown_tensors``,
            ``unknown_settings``, ``mixed_dora``, ``input_dora``.
        detail: What was found, in English.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class AdapterLayer:
    """The adapter of one layer: W + alpha / r · up · down, for DoRA scaled to its magnitude.

    Attributes:
        down: (r, in), for a convolution (r, in, k, k).
        up: (out, r), for a convolution (out, r, 1, 1).
        alpha: Strength; the rank if the file says nothing.
        magnitude: DoRA's lengths of the rows of the whole weight, with ``out`` values.
    """

    down: torch.Tensor
    up: torch.Tensor
    alpha: float
    magnitude: torch.Tensor | None = None

    @property
    def rank(self) -> int:
        """Rank of the adapter."""
        return self.down.shape[0]


#: Layers by component and dotted name.
Adapter = dict[str, dict[str, AdapterLayer]]


def layer_names(pipeline: Any) -> dict[str, dict[str, str]]:
    """The layers that can wear an adapter: by component, from flat names to their own.

    UNet layers are also listed under the names of the original code. It must be asked
    before the first adapter is put on.
    """
    names: dict[str, dict[str, str]] = {}
    for component in COMPONENTS:
        network = getattr(pipeline, component, None)
        if network is None:
            continue
        own = names.setdefault(component, {})
        for name, module in network.named_modules():
            if not isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                continue
            own[flat_layer(name)] = name
            if component == "unet":
                try:
                    own[flat_layer(block_name(name, network.config))] = name
                except ValueError:
                    continue
    return names


def read_adapter(path: Path, names: Mapping[str, Mapping[str, str]]) -> Adapter:
    """Reads a LoRA file for a pipeline.

    Args:
        path: A safetensors file whose header was checked (``inspection``).
        names: The pipeline's layers, from :func:`layer_names`.

    Raises:
        AdapterError: If any tensor of it finds no place.
        OSError: If it cannot be read.
    """
    parts: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    with safe_open(path, framework="pt") as stream:
        settings = adapter_settings(stream.metadata() or {})
        for tensor in stream.keys():  # noqa: SIM118
            parsed = parse_tensor_name(tensor)
            if parsed is None:
                raise AdapterError("unknown_tensors", tensor[:200])
            layer = names.get(parsed.component, {}).get(parsed.flat)
            if layer is None:
                raise AdapterError("other_layers", tensor[:200])
            place = parts.setdefault((parsed.component, layer), {})
            if parsed.part in place:
                raise AdapterError("other_layers", f"{tensor[:200]} comes twice")
            # A copy, so that nothing hangs on the file any more.
            place[parsed.part] = stream.get_tensor(tensor).clone()
    adapter: Adapter = {}
    for (component, layer), found in parts.items():
        own = {
            name.removeprefix(f"{component}."): value
            for name, value in settings.items()
            if name.startswith(f"{component}.")
        }
        adapter.setdefault(component, {})[layer] = _layer(layer, found, own)
    return adapter


def _layer(
    name: str, parts: Mapping[str, torch.Tensor], settings: Mapping[str, Any]
) -> AdapterLayer:
    if not {DOWN, UP} <= set(parts):
        raise AdapterError("other_layers", f"{name} has one half of an adapter")
    down, up = parts[DOWN], parts[UP]
    if down.ndim not in (2, 4) or up.ndim != down.ndim or up.shape[1] != down.shape[0]:
        raise AdapterError("other_shapes", name)
    alpha = _alpha(name, parts, settings, down.shape[0])
    return AdapterLayer(down, up, alpha, parts.get(MAGNITUDE))


def _alpha(
    name: str, parts: Mapping[str, torch.Tensor], settings: Mapping[str, Any], rank: int
) -> float:
    """The strength of a layer: its own tensor's, else the settings', else its rank."""
    if ALPHA in parts:
        if parts[ALPHA].numel() != 1:
            raise AdapterError("other_shapes", f"alpha of {name}")
        alpha: Any = float(parts[ALPHA])
    else:
        alpha = settings.get("lora_alpha", rank)
        patterns = settings.get("alpha_pattern")
        for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
            # Names and ends of names; a stranger's expression is not run.
            end = pattern.strip("^$").replace("\\", "")
            if name == end or name.endswith(f".{end}"):
                alpha = value
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise AdapterError("unknown_settings", f"alpha of {name} is {str(alpha)[:40]}")
    # With this setting the strength is alpha / √r.
    return alpha * math.sqrt(rank) if settings.get("use_rslora") else float(alpha)


def put_on(pipeline: Any, adapter: Adapter, name: str) -> None:
    """Puts an adapter on the networks of a pipeline and makes it the active one there.

    Args:
        pipeline: Whose networks; weights become their type and go to their device.
        adapter: The layers.
        name: What the adapter is called from now on.

    Raises:
        AdapterError: If shapes do not fit; take off what was put on by
            ``delete_adapters``.
    """
    for component, layers in adapter.items():
        network = getattr(pipeline, component)
        fitted = {
            layer: _fitted(network.get_submodule(layer), layer, layers[layer]) for layer in layers
        }
        config = _config(fitted)
        with warnings.catch_warnings():
            # Several adapters on one network are the point here.
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            # Empty at first, so nothing is drawn from a random state; the keys say which layers.
            inject_adapter_in_model(
                config,
                network,
                adapter_name=name,
                low_cpu_mem_usage=True,
                state_dict={f"{layer}.lora_A.weight": one.down for layer, one in fitted.items()},
            )
        network._hf_peft_config_loaded = True
        for layer, weights in fitted.items():
            _fill(network.get_submodule(layer), weights, name)


def _base_weight(module: Any) -> torch.Tensor:
    is_worn = isinstance(module, LoraLayer)
    layer: Any = module.get_base_layer() if is_worn else module
    weight: torch.Tensor = layer.weight
    return weight


def _fitted(module: Any, name: str, layer: AdapterLayer) -> AdapterLayer:
    """The same layer in the shapes that peft holds.

    Files carry 1×1 convolutions as matrices and matrices as 1×1 convolutions.
    """
    weight = _base_weight(module)
    down_shape = (layer.rank, *weight.shape[1:])
    up_shape = (weight.shape[0], layer.rank, *(1 for _ in weight.shape[2:]))
    try:
        down, up = layer.down.reshape(down_shape), layer.up.reshape(up_shape)
    except RuntimeError as error:
        raise AdapterError("other_shapes", name) from error
    return replace(layer, down=down, up=up, magnitude=_magnitude(layer, weight, name))


def _magnitude(layer: AdapterLayer, weight: torch.Tensor, name: str) -> torch.Tensor | None:
    if layer.magnitude is None:
        return None
    out, inside = weight.shape[:2]
    per_row = layer.magnitude.shape[0] == out or layer.magnitude.shape[:2] == (1, out)
    if layer.magnitude.numel() != out or not per_row:
        # The first DoRA files scale the columns of a weight; peft knows rows only.
        reason = "input_dora" if layer.magnitude.numel() == inside else "other_shapes"
        raise AdapterError(reason, name)
    return layer.magnitude.reshape((out,) if weight.ndim == 2 else (1, out, 1, 1))


def _config(layers: Mapping[str, AdapterLayer]) -> LoraConfig:
    with_dora = [layer for layer in layers.values() if layer.magnitude is not None]
    if with_dora and len(with_dora) < len(layers):
        raise AdapterError("mixed_dora", "some layers have a magnitude and some have none")
    first = next(iter(layers.values()))
    return LoraConfig(
        r=first.rank,
        lora_alpha=first.alpha,  # type: ignore[arg-type]
        target_modules=sorted(layers),
        rank_pattern={
            f"^{re.escape(name)}$": layer.rank
            for name, layer in layers.items()
            if layer.rank != first.rank
        },
        alpha_pattern={
            f"^{re.escape(name)}$": layer.alpha
            for name, layer in layers.items()
            if layer.alpha != first.alpha
        },
        use_dora=bool(with_dora),
        init_lora_weights=False,
    )


def _fill(module: Any, layer: AdapterLayer, name: str) -> None:
    weight = _base_weight(module)
    parts = [(module.lora_A[name], layer.down), (module.lora_B[name], layer.up)]
    if layer.magnitude is not None:
        parts.append((module.lora_magnitude_vector[name], layer.magnitude))
    for part, values in parts:
        # A weight that wants gradients is multiplied in another order, in trainers and in
        # diffusers' loader alike; without that the last bits differ from theirs.
        part.weight = torch.nn.Parameter(values.to(device=weight.device, dtype=weight.dtype))


def worn_by(pipeline: Any, name: str) -> Iterator[tuple[str, str, Any]]:
    """The component, name and peft layer of everything that wears an adapter."""
    for component in COMPONENTS:
        network = getattr(pipeline, component, None)
        if network is None:
            continue
        for layer, module in network.named_modules():
            if isinstance(module, LoraLayer) and name in module.lora_A:
                yield component, layer, module


def peft_layers(pipeline: Any) -> list[Any]:
    """Every layer of a pipeline's networks that wears or wore an adapter."""
    networks = (getattr(pipeline, component, None) for component in COMPONENTS)
    return [
        module
        for network in networks
        if network is not None
        for module in network.modules()
        if isinstance(module, LoraLayer)
    ]


def wear(layers: Iterable[Any], weights: Mapping[str, float]) -> None:
    """Puts exactly these adapters to work.

    peft's own way also marks, for training, every weight of every adapter that is on a layer: with
    sixteen of them that takes longer than a step.

    Args:
        layers: All of a pipeline, see :func:`peft_layers`.
        weights: How strong each adapter shall be, by its name; none switches all off.
    """
    for layer in layers:
        for name, weight in weights.items():
            if name in layer.scaling:
                layer.set_scale(name, weight)
        layer._active_adapter = list(weights)
        layer._disable_adapters = not weights

"""LoRA adapters on a denoiser: which layers get them, and their weights by name.

peft defines what an adapter is. Adapters are always fp32, whatever the base computes
in. Files are written by ``export``.

Source: Hu et al. 2021 (arXiv:2106.09685): W + alpha / rank · B A, with B zero at first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig

from training_app.trainer.config import TrainingConfig
from training_app.trainer.randomness import derive_seed

ADAPTER_NAME = "default"

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
_CONVOLUTIONS = ("proj_in", "proj_out", "conv1", "conv2")
#: Names of layers, or the ends of their names, by the choices of ``targets``.
TARGETS = {
    "attention": _ATTENTION,
    "attention+feed_forward": (*_ATTENTION, *_FEED_FORWARD),
    "all": (*_ATTENTION, *_FEED_FORWARD, *_CONVOLUTIONS),
}


def adapter_settings(config: TrainingConfig) -> dict[str, Any]:
    """The adapters' settings by peft's names, as far as they matter to a reader of them."""
    return {
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(TARGETS[config.targets]),
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_dora": False,
        "use_rslora": False,
    }


def add_adapters(denoiser: Any, config: TrainingConfig) -> dict[str, torch.nn.Parameter]:
    """Puts fresh adapters into a frozen denoiser; it computes what it did before.

    Args:
        denoiser: A diffusers model; its own weights stop learning.
        config: Rank, alpha, targets and seed.

    Returns:
        The parameters that learn, by their name without the adapter's, sorted.
    """
    denoiser.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        denoiser.add_adapter(LoraConfig(**adapter_settings(config)), adapter_name=ADAPTER_NAME)
    parameters = adapter_parameters(denoiser)
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "adapters"))
    for name, parameter in parameters.items():
        parameter.data = parameter.data.to(torch.float32)
        if ".lora_A." in name:
            start = torch.empty(parameter.shape)
            torch.nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
            parameter.data.copy_(start)
        else:
            torch.nn.init.zeros_(parameter)
    return parameters


def adapter_parameters(denoiser: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters that learn, by component and their name without the adapter's, sorted."""
    found = {
        f"unet.{name.replace(f'.{ADAPTER_NAME}.', '.')}": parameter
        for name, parameter in denoiser.named_parameters()
        if parameter.requires_grad
    }
    return dict(sorted(found.items()))


def load_adapters(
    parameters: Mapping[str, torch.nn.Parameter], weights: Mapping[str, torch.Tensor]
) -> None:
    """Sets the adapters to saved weights, exactly.

    Raises:
        ValueError: If names or shapes differ.
    """
    if set(parameters) != set(weights):
        raise ValueError("the weights belong to other adapters")
    for name, parameter in parameters.items():
        if parameter.shape != weights[name].shape:
            raise ValueError(f"{name} has another shape")
        parameter.data.copy_(weights[name])

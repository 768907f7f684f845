"""LoRA adapters on a network: which layers get them, and their weights by name.

peft defines what an adapter is. Adapters are always fp32, whatever the base computes
in. Files are written by ``export``.

Sources: Hu et al. 2021 (arXiv:2106.09685): W + alpha / rank · B A, with B zero at first;
Liu et al. 2024 (arXiv:2402.09353) for DoRA.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from peft import LoraConfig

from training_app.trainer.config import TrainingConfig
from training_app.trainer.randomness import derive_seed

ADAPTER_NAME = "default"

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
_CONVOLUTIONS = ("proj_in", "proj_out", "conv1", "conv2")
#: Names of layers of a denoiser, or the ends of their names, by the choices of ``targets``.
TARGETS = {
    "attention": _ATTENTION,
    "attention+feed_forward": (*_ATTENTION, *_FEED_FORWARD),
    "all": (*_ATTENTION, *_FEED_FORWARD, *_CONVOLUTIONS),
}
_TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
_TEXT_LAYERS = (*_TEXT_ATTENTION, "fc1", "fc2")
#: Likewise of a text encoder.
TEXT_ENCODER_TARGETS = {
    "attention": _TEXT_ATTENTION,
    "attention+feed_forward": _TEXT_LAYERS,
    "all": _TEXT_LAYERS,
}


def adapter_settings(config: TrainingConfig, component: str) -> dict[str, Any]:
    """The adapters' settings by peft's names, as far as they matter to a reader of them.

    Args:
        config: Rank, alpha, targets and kind.
        component: Folder of the network that has them.
    """
    targets = TEXT_ENCODER_TARGETS if component.startswith("text_encoder") else TARGETS
    return {
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "bias": "none",
        "target_modules": list(targets[config.targets]),
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_dora": config.use_dora,
        "use_rslora": False,
    }


def add_adapters(
    network: Any, config: TrainingConfig, component: str
) -> dict[str, torch.nn.Parameter]:
    """Puts fresh adapters into a frozen network; it computes what it did before.

    Args:
        network: A model of diffusers or transformers; its own weights stop learning.
        config: Rank, alpha, targets, kind and seed.
        component: Name of the network's folder, put before every name.

    Returns:
        The parameters that learn, by component and name without the adapter's, sorted.
    """
    network.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        network.add_adapter(
            LoraConfig(**adapter_settings(config, component)), adapter_name=ADAPTER_NAME
        )
    parameters = adapter_parameters(network, component)
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "adapters", component))
    for name, parameter in parameters.items():
        parameter.data = parameter.data.to(torch.float32)
        if ".lora_A." in name:
            start = torch.empty(parameter.shape)
            torch.nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
            parameter.data.copy_(start)
        elif ".lora_B." in name:
            torch.nn.init.zeros_(parameter)
    return parameters


def adapter_parameters(network: Any, component: str) -> dict[str, torch.nn.Parameter]:
    """The parameters that learn, by component and name without the adapter's, sorted."""
    found = {
        f"{component}.{name}".replace(f".{ADAPTER_NAME}.", "."): parameter
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }
    return dict(sorted(found.items()))

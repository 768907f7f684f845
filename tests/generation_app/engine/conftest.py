"""A tiny base model, LoRA files made for it, and a line that remembers what is sent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models_app.inspection import sha256_of
from tests.tiny import make_tiny_sd

UNET_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]


class Recorder:
    """Stands for the line to the worker."""

    def __init__(self, stop_when: Callable[[list[dict[str, Any]]], str | None] | None = None):
        self.messages: list[dict[str, Any]] = []
        self._stop_when = stop_when
        # Which of several requests it is that shall stop.
        self.stops: set[str] = set()

    def send(self, message_type: str, /, **fields: Any) -> None:
        self.messages.append({"type": message_type, **fields})

    def stop_requested(self) -> str | None:
        return self._stop_when(self.messages) if self._stop_when else None

    def stop_of(self, job_id: str) -> str | None:
        return self.stop_requested() if job_id in self.stops else None

    def of(self, message_type: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["type"] == message_type]


def make_lora(
    base: Path,
    path: Path,
    *,
    rank: int = 4,
    alpha: int = 7,
    seed: int = 1,
    text: bool = False,
    dora: bool = False,
    kind: str = "sd1",
) -> Path:
    """Write a LoRA with random weights that plain diffusers loads, alpha and all."""
    import torch
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig, get_peft_model_state_dict

    from models_app.loading import load_pipeline

    pipe = load_pipeline(base, kind)
    states, metadata = {}, {}
    wanted = {"unet": UNET_TARGETS, **({"text_encoder": TEXT_TARGETS} if text else {})}
    generator = torch.Generator().manual_seed(seed)
    for component, targets in wanted.items():
        network = getattr(pipe, component)
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, use_dora=dora)
        network.add_adapter(config)
        for name, parameter in network.named_parameters():
            if "magnitude" in name:
                parameter.data = parameter.data * 1.1
            elif "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
        # Without its end, diffusers writes this name and does not find it again.
        states[component] = {
            name + ".weight" * name.endswith("magnitude_vector"): value
            for name, value in convert_state_dict_to_diffusers(
                get_peft_model_state_dict(network)
            ).items()
        }
        metadata[component] = config.to_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {}
    if text:
        options = {
            "text_encoder_lora_layers": states["text_encoder"],
            "text_encoder_lora_adapter_metadata": metadata["text_encoder"],
        }
    pipe.save_lora_weights(
        path.parent,
        weight_name=path.name,
        unet_lora_layers=states["unet"],
        unet_lora_adapter_metadata=metadata["unet"],
        **options,
    )
    return path


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion pipeline of 64×64 pixels."""
    return make_tiny_sd(tmp_path_factory.mktemp("engine") / "base")


@pytest.fixture(scope="session")
def lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA whose alpha is not its rank."""
    return make_lora(base, tmp_path_factory.mktemp("loras") / "one.safetensors")


@pytest.fixture(scope="session")
def text_lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA that reaches the text encoder too."""
    folder = tmp_path_factory.mktemp("loras")
    return make_lora(base, folder / "text.safetensors", rank=3, alpha=5, seed=2, text=True)


@pytest.fixture
def order(base: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Make a request as the worker sends it."""

    def make(*, loras: list[tuple[Path, float]] | None = None, **changes: Any) -> dict[str, Any]:
        return {
            "job_id": "0000",
            "mode": "text-to-image",
            "base_folder": str(base),
            "base_sha256": "b" * 64,
            "architecture": "sd1",
            "model_name": "Tiny",
            "prompt": "a cat",
            "negative_prompt": "",
            "width": 64,
            "height": 64,
            "num_inference_steps": 3,
            "guidance_scale": 5.0,
            "scheduler": "ddim",
            "clip_skip": 0,
            "seeds": [11],
            "output_folder": str(tmp_path / "out"),
            "device": "cpu",
            "threads": 1,
            "preview": False,
            "metadata": {},
            "loras": [
                {"path": str(p), "sha256": sha256_of(p), "weight": w, "name": p.stem}
                for p, w in loras or []
            ],
        } | changes

    return make

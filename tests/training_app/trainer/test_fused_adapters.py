"""The adapter layer of the hot loop: peft's numbers with fewer operators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from models_app.loading import load_components
from training_app.trainer.adapters import ADAPTER_NAME, add_adapters
from training_app.trainer.config import TrainingConfig, resolve_config
from training_app.trainer.fused_adapters import fuse_adapters


class _Counter(TorchDispatchMode):
    """Counts what is launched on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def _config(**asked: Any) -> TrainingConfig:
    asked = {"rank": 4, "alpha": 6, "targets": "attention+feed_forward"} | asked
    return resolve_config(
        asked, architecture="sd1", method="lora", base_defaults={"width": 64}, num_images=4
    )


def _denoiser(folder: Path, config: TrainingConfig, dtype: torch.dtype = torch.float32) -> Any:
    """A UNet whose adapters have learned something, so that both halves matter."""
    denoiser = load_components(folder, "sd1", only=("unet",), dtype=dtype)["unet"]
    generator = torch.Generator().manual_seed(5)
    for parameter in add_adapters(denoiser, config, "unet").values():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return denoiser


def _gradients(denoiser: Any, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    channels, width = denoiser.config.in_channels, denoiser.config.cross_attention_dim
    latents = torch.randn(2, channels, 8, 8, generator=generator).to(dtype)
    embeds = torch.randn(2, 77, width, generator=generator).to(dtype)
    denoiser.zero_grad()
    prediction = denoiser(latents, torch.tensor([3, 500]), embeds, return_dict=False)[0]
    (prediction.float() ** 2).mean().backward()
    found = {n: p.grad for n, p in denoiser.named_parameters() if p.requires_grad}
    return found | {"prediction": prediction.detach()}


@pytest.mark.parametrize("targets", ["attention", "attention+feed_forward", "all"])
def test_prediction_and_gradients_are_pefts(base_folder: Path, targets: str) -> None:
    config = _config(targets=targets)
    denoiser = _denoiser(base_folder, config)
    wanted = _gradients(denoiser)
    names = list(denoiser.state_dict())
    assert fuse_adapters(denoiser, ADAPTER_NAME) > 0
    found = _gradients(denoiser)
    assert list(denoiser.state_dict()) == names
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_a_bf16_base_keeps_fp32_adapters(base_folder: Path) -> None:
    denoiser = _denoiser(base_folder, _config(), torch.bfloat16)
    fuse_adapters(denoiser, ADAPTER_NAME)
    found = _gradients(denoiser, torch.bfloat16)
    assert found.pop("prediction").dtype == torch.bfloat16
    assert all(value.dtype == torch.float32 for value in found.values())
    wanted = _gradients(_denoiser(base_folder, _config()))
    wanted.pop("prediction")
    error = sum(float((found[n] - wanted[n]).norm()) for n in wanted)
    assert error < 0.05 * sum(float(value.norm()) for value in wanted.values())


def test_it_launches_far_less(base_folder: Path) -> None:
    denoiser = _denoiser(base_folder, _config())
    with _Counter() as before:
        _gradients(denoiser)
    fuse_adapters(denoiser, ADAPTER_NAME)
    with _Counter() as after:
        _gradients(denoiser)
    assert after.count < 0.85 * before.count


def test_another_adapter_and_none_are_left_to_peft(base_folder: Path) -> None:
    denoiser = _denoiser(base_folder, _config())
    fuse_adapters(denoiser, ADAPTER_NAME)
    learned = _gradients(denoiser)["prediction"]
    denoiser.disable_adapters()
    channels, width = denoiser.config.in_channels, denoiser.config.cross_attention_dim
    with torch.no_grad():
        generator = torch.Generator().manual_seed(7)
        latents = torch.randn(2, channels, 8, 8, generator=generator)
        embeds = torch.randn(2, 77, width, generator=generator)
        plain = denoiser(latents, torch.tensor([3, 500]), embeds, return_dict=False)[0]
        base = load_components(base_folder, "sd1", only=("unet",))["unet"]
        assert torch.equal(
            plain, base(latents, torch.tensor([3, 500]), embeds, return_dict=False)[0]
        )
    assert not torch.equal(plain, learned)

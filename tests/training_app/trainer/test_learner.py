"""What learns: which weights, how fast, and what it shows at rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from training_app.trainer.learner import Learner
from training_app.trainer.request import TrainingRequest

MakeRequest = Callable[..., dict[str, Any]]


@pytest.fixture
def make(make_request: MakeRequest) -> Callable[..., Learner]:
    def do(config: dict[str, Any], **changes: Any) -> Learner:
        return Learner(TrainingRequest.from_dict(make_request(config, **changes)))

    return do


Make = Callable[..., Learner]


def test_only_what_learns_has_gradients(make: Make, sdxl_folder: Path) -> None:
    adapters = make({})
    assert all(name.startswith("unet.") and ".lora_" in name for name in adapters.parameters)
    assert list(adapters.networks) == ["unet"]
    whole = make({}, method="full")
    assert len(whole.parameters) == len(list(whole.denoiser.parameters()))
    with_text = make(
        {"train_text_encoder": True}, base_folder=str(sdxl_folder), architecture="sdxl"
    )
    components = {name.partition(".")[0] for name in with_text.parameters}
    assert components == {"unet", "text_encoder", "text_encoder_2"}
    for learner in (adapters, whole, with_text):
        learning = {
            id(p) for n in learner.networks.values() for p in n.parameters() if p.requires_grad
        }
        assert learning == {id(parameter) for parameter in learner.parameters.values()}
        assert {parameter.dtype for parameter in learner.parameters.values()} == {torch.float32}
        assert list(learner.parameters) == sorted(learner.parameters)


def test_masters_are_fp32_whatever_is_computed_in(make: Make) -> None:
    adapters = make({"mixed_precision": "bf16"})
    assert adapters.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in adapters.parameters.values()} == {torch.float32}
    assert make({"mixed_precision": "bf16"}, method="full").dtype == torch.float32


def test_text_encoders_have_a_learning_rate_of_their_own(make: Make) -> None:
    rates = {"learning_rate": 1e-3, "text_encoder_learning_rate": 1e-5}
    learner = make(rates | {"train_text_encoder": True})
    denoiser, text = learner.groups()
    assert (denoiser["lr"], text["lr"]) == (1e-3, 1e-5)
    assert {id(p) for p in text["params"]} == {
        id(p) for name, p in learner.parameters.items() if name.startswith("text_encoder.")
    }
    assert len(denoiser["params"]) + len(text["params"]) == len(learner.parameters)
    assert [group["peak_learning_rate"] for group in make(rates).groups()] == [1e-3]


def test_dora_starts_from_the_sizes_of_the_weights(make: Make) -> None:
    learner = make({"use_dora": True})
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    weight = learner.denoiser.get_submodule(f"{name.removeprefix('unet.')}.base_layer").weight
    magnitude = learner.parameters[f"{name}.lora_magnitude_vector.weight"]
    torch.testing.assert_close(magnitude.detach(), weight.norm(dim=1))


def test_at_rest_the_networks_compute_with_the_average(make: Make) -> None:
    learner = make({"use_ema": True, "dropout": 0.5})
    assert learner.average is not None
    name = next(iter(learner.parameters))
    start = learner.parameters[name].detach().clone()
    learner.parameters[name].data += 1
    # An early step counts for much: (1 + 0) / (10 + 0) of the average is kept.
    learner.average.update(0)
    torch.testing.assert_close(learner.average.weights[name], start + 0.9)
    assert learner.denoiser.training
    storage = learner.parameters[name].data_ptr()
    with learner.at_rest():
        assert not learner.denoiser.training
        torch.testing.assert_close(learner.parameters[name].detach(), start + 0.9)
    assert learner.denoiser.training
    assert learner.parameters[name].data_ptr() == storage
    torch.testing.assert_close(learner.parameters[name].detach(), start + 1)
    for _ in range(3):
        learner.average.update(10**6)
    # Late in the run only the asked share is forgotten.
    torch.testing.assert_close(learner.average.weights[name], start + 0.9003, atol=1e-4, rtol=0)


def test_weights_of_something_else_are_refused(make: Make) -> None:
    learner = make({"use_ema": True})
    weights = {name: value.detach() for name, value in learner.parameters.items()}
    with pytest.raises(ValueError, match="something else"):
        learner.load(weights, None)
    name = next(iter(weights))
    with pytest.raises(ValueError, match="shape"):
        learner.load(weights | {name: weights[name][:1]}, weights)

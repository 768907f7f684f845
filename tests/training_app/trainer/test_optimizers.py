"""Optimizers: exact state, no update by what is not finite."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from training_app.trainer.config import ConfigError, TrainingConfig, resolve_config
from training_app.trainer.files import read_tensors, write_tensors
from training_app.trainer.optimizers import (
    SMALLEST_SCALE,
    OptimizerState,
    WeightUpdate,
    build_optimizer,
)

NAMES = ["adamw", "prodigy", "adafactor"]
Parameters = dict[str, torch.nn.Parameter]


def _config(optimizer: str = "adamw", **asked: Any) -> TrainingConfig:
    asked = {"optimizer": optimizer} | asked
    return resolve_config(asked, architecture="sd1", method="lora", num_images=10)


def _parameters() -> Parameters:
    """A matrix, a vector, a convolution, and an adapter's half that begins at zero."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (6, 4), "b": (5,), "c": (3, 2, 3, 3)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    tensors["zero"] = torch.zeros(4, 4)
    return {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}


def _groups(parameters: Parameters, *rates: float) -> list[dict[str, Any]]:
    names = list(parameters)
    halves = [names[:2], names[2:]] if len(rates) == 2 else [names]
    return [
        {"params": [parameters[name] for name in half], "lr": rate, "peak_learning_rate": rate}
        for half, rate in zip(halves, rates, strict=True)
    ]


def _update(
    parameters: Parameters, optimizer: str, dtype: torch.dtype = torch.float32
) -> WeightUpdate:
    config = _config(optimizer, weight_decay=0.01)
    groups = _groups(parameters, config.learning_rate, config.learning_rate / 2)
    return WeightUpdate(config, groups, dtype=dtype, device="cpu")


def _step(update: WeightUpdate, parameters: Parameters, number: int) -> torch.Tensor:
    update.set_rate(1 - number / 100)
    generator = torch.Generator().manual_seed(number)
    loss = torch.stack(
        [(p * (0.5 + torch.randn(p.shape, generator=generator))).sum() for p in parameters.values()]
    ).sum()
    update.scale(loss).backward()
    return update.apply()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("broken_off_at", [0, 1, 7])
def test_a_restored_optimizer_goes_on_bit_for_bit(
    tmp_path: Path, name: str, dtype: torch.dtype, broken_off_at: int
) -> None:
    unbroken = _parameters()
    update = _update(unbroken, name, dtype)
    saved: OptimizerState | None = None
    weights: dict[str, torch.Tensor] = {}
    for number in range(15):
        if number == broken_off_at:
            saved = update.state(unbroken)
            write_tensors(tmp_path / "state.safetensors", saved.tensors, {})
            weights = {key: value.detach().clone() for key, value in unbroken.items()}
            numbers = json.loads(json.dumps(saved.numbers, allow_nan=False))
        _step(update, unbroken, number)

    resumed = _parameters()
    for key, value in resumed.items():
        value.data.copy_(weights[key])
    other = _update(resumed, name, dtype)
    other.restore(resumed, OptimizerState(read_tensors(tmp_path / "state.safetensors")[0], numbers))
    for number in range(broken_off_at, 15):
        _step(other, resumed, number)
    for key, value in unbroken.items():
        assert torch.equal(value, resumed[key]), key
    assert other.state(resumed).numbers == update.state(unbroken).numbers


def test_prodigy_lets_text_encoders_go_their_share_of_the_way() -> None:
    parameters, alone = _parameters(), _parameters()
    config = _config("prodigy", weight_decay=0)
    shared = WeightUpdate(config, _groups(parameters, 1.0, 0.25), dtype=torch.float32, device="cpu")
    plain = WeightUpdate(config, _groups(alone, 1.0, 1.0), dtype=torch.float32, device="cpu")
    before = {name: value.detach().clone() for name, value in parameters.items()}
    for update, weights in ((shared, parameters), (plain, alone)):
        _step(update, weights, 0)
    for name, share in (("a", 1), ("b", 1), ("c", 0.25), ("zero", 0.25)):
        way = alone[name].detach() - before[name]
        assert way.abs().sum() > 0
        torch.testing.assert_close(parameters[name].detach() - before[name], share * way)


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_comes_to_the_target(name: str) -> None:
    config = _config(name, weight_decay=0, **({} if name == "prodigy" else {"learning_rate": 0.1}))
    parameters = _parameters()
    rate = config.learning_rate
    update = WeightUpdate(config, _groups(parameters, rate), dtype=torch.float32, device="cpu")

    def distance() -> torch.Tensor:
        return torch.stack([((p - 0.5) ** 2).sum() for p in parameters.values()]).sum()

    before = distance().item()
    for number in range(300):
        update.set_rate(1 - number / 300)
        update.scale(distance()).backward()
        update.apply()
    assert distance().item() < before / 100


def test_prodigy_has_one_group_and_tells_the_rate_it_has_found() -> None:
    parameters = _parameters()
    update = _update(parameters, "prodigy")
    first = update.set_rate(1.0)
    assert len(update.optimizer.param_groups) == 1
    assert first == pytest.approx(1e-6)
    for _ in range(60):
        update.scale(torch.stack([p.sum() for p in parameters.values()]).sum()).backward()
        update.apply()
    assert update.set_rate(1.0) > 2 * first
    assert update.set_rate(0.5) == pytest.approx(update.set_rate(1.0) / 2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(
    name: str, dtype: torch.dtype, poison: float
) -> None:
    parameters = _parameters()
    update = _update(parameters, name, dtype)
    _step(update, parameters, 0)
    before = {key: value.detach().clone() for key, value in parameters.items()}
    update.scale((parameters["a"] * poison).sum()).backward()
    norm = update.apply()
    assert not torch.isfinite(norm)
    assert all(torch.equal(before[key], value) for key, value in parameters.items())
    assert all(value.grad is None for value in parameters.values())
    # In fp16 it is an overflow until the scale is at its end.
    assert bool(torch.isfinite(update.fault(norm))) == (dtype == torch.float16)
    _step(update, parameters, 1)
    assert not torch.equal(before["a"], parameters["a"])


def test_a_scaler_that_finds_no_scale_is_a_fault() -> None:
    parameters = _parameters()
    update = _update(parameters, "adamw", torch.float16)
    norms = []
    for _ in range(40):
        update.scale((parameters["a"] * float("inf")).sum()).backward()
        norms.append(update.fault(update.apply()))
        if not torch.isfinite(norms[-1]):
            break
    assert 2.0**16 / 2 ** len(norms) < SMALLEST_SCALE
    assert len(norms) == 17


def test_gradients_are_clipped_to_the_norm_without_their_scale() -> None:
    for dtype in (torch.float32, torch.float16):
        parameters = {"a": torch.nn.Parameter(torch.ones(4))}
        config = _config("adamw", max_grad_norm=1.0)
        groups = _groups(parameters, 1e-3)
        update = WeightUpdate(config, groups, dtype=dtype, device="cpu")
        update.scale((parameters["a"] * 3).sum()).backward()
        assert update.apply() == pytest.approx(6.0)


def test_an_optimizer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    config = _config("adamw8bit")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="bitsandbytes") as error:
        build_optimizer(config, _groups(_parameters(), 1e-4))
    assert error.value.code == "not_installed"


def test_a_state_of_other_parameters_is_refused() -> None:
    parameters = _parameters()
    update = _update(parameters, "adamw")
    _step(update, parameters, 0)
    saved = update.state(parameters)
    del parameters["a"]
    with pytest.raises(KeyError):
        update.restore(parameters, saved)

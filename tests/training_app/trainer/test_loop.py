"""Steps: learning, exact resumption, no waiting."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch.utils._python_dispatch import TorchDispatchMode

import training_app.trainer.reporting as reporting
from tests.training_app.trainer.conftest import (
    ONE_SAMPLE,
    Finished,
    Recorder,
    make_training,
    request_for,
)
from training_app.trainer import loop
from training_app.trainer.config import TrainingConfig, resolve_config
from training_app.trainer.learner import compute_dtype
from training_app.trainer.learning_rate import learning_rate_factor
from training_app.trainer.run import run

Train = Callable[..., Recorder]
MakeRequest = Callable[..., dict[str, Any]]
DRAWING = {"gradient_accumulation_steps": 2, "flip": True, "caption_dropout": 0.5}


def _weights(recorder: Recorder) -> bytes:
    return Path(recorder.last["outputs"]["weights"]).read_bytes()


def _config(**asked: Any) -> TrainingConfig:
    return resolve_config(asked, architecture="sd1", method="lora", num_images=10)


def test_the_learning_rate_rises_and_falls_as_said() -> None:
    config = _config(max_train_steps=100, lr_warmup_steps=10)
    factors = [learning_rate_factor(step, config) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1
    assert factors[55] == pytest.approx(0.5)
    assert 0 < factors[99] < 1e-3
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))
    linear = _config(max_train_steps=100, lr_warmup_steps=0, lr_scheduler="linear")
    assert learning_rate_factor(50, linear) == pytest.approx(0.5)
    constant = _config(max_train_steps=100, lr_warmup_steps=0, lr_scheduler="constant")
    assert learning_rate_factor(99, constant) == 1
    assert math.isfinite(learning_rate_factor(0, _config(max_train_steps=1, lr_warmup_steps=99)))


def test_a_cpu_computes_in_fp32_unless_asked() -> None:
    assert compute_dtype(_config(), "cpu") == torch.float32
    assert compute_dtype(_config(mixed_precision="no"), "cuda:0") == torch.float32
    assert compute_dtype(_config(mixed_precision="bf16"), "cpu") == torch.bfloat16


def test_the_loss_falls(make_request: MakeRequest) -> None:
    config = {"max_train_steps": 150, "learning_rate": 5e-3, "rank": 16, "snr_gamma": 0}
    training = make_training(make_request(config | {"targets": "attention+feed_forward"}))
    losses = [training.do_step().loss.item() for _ in range(150)]
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])


@pytest.fixture(scope="module")
def unbroken(
    base_folder: Path, images: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Recorder:
    """A run with everything that draws: accumulation, mirrored pictures, dropped captions."""
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reporting, "MESSAGES_PER_SECOND", 1e9)
        run(recorder, request_for(base_folder, images, tmp_path_factory.mktemp("run"), DRAWING))
    return recorder


@pytest.mark.parametrize(
    "config",
    [
        {"optimizer": "adafactor", "shuffle_captions": True, "noise_offset": 0.1},
        {"mixed_precision": "fp16", "max_grad_norm": 0.1, "loss": "huber"},
    ],
)
def test_every_kind_of_run_resumes_bit_for_bit(
    train: Train, tmp_path: Path, config: dict[str, Any]
) -> None:
    config = config | ONE_SAMPLE | {"max_train_steps": 6}
    unbroken = train(config, output_folder=str(tmp_path / "unbroken"))
    first = train(config, Recorder(4, "pause"))
    second = train(config, resume_folder=str(tmp_path / "output" / "checkpoints"))
    assert second.of("step")[0]["step"] == 5
    assert first.history + second.history == unbroken.history
    weights, expected = (load(_weights(recorder)) for recorder in (second, unbroken))
    assert all(torch.equal(weights[name], expected[name]) for name in weights)


@pytest.mark.parametrize("broken_off_at", [1, 5, 11])
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(
    unbroken: Recorder, train: Train, tmp_path: Path, broken_off_at: int
) -> None:
    # Nothing but the step decides: not the global random state, not samples between steps.
    torch.manual_seed(999)
    changed = DRAWING | {"sample_every_steps": 4}
    first = train(changed, Recorder(broken_off_at, "pause"))
    assert first.last == {"type": "stopped", "how": "pause", "step": broken_off_at}
    assert first.of("checkpoint")[-1]["step"] == broken_off_at
    second = train(changed, resume_folder=str(tmp_path / "output" / "checkpoints"))
    resumed = {"type": "note", "code": "resumed", "params": {"step": broken_off_at}}
    assert second.of("note") == [resumed]
    assert second.of("step")[0]["step"] == broken_off_at + 1
    assert first.history + second.history == unbroken.history
    weights, expected = (load(_weights(recorder)) for recorder in (second, unbroken))
    assert set(weights) == set(expected)
    assert all(torch.equal(weights[name], expected[name]) for name in weights)


def test_a_run_that_shall_stop_while_it_stands_aside_computes_nothing_more(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Aside(Recorder):
        """Others want the device after the second step, and then the run is paused."""

        def aside_wanted(self) -> bool:
            return self.step == 2

        def wait_aside(self) -> str | None:
            monkeypatch.setattr(loop, "held_out_loss", None)  # whoever computes now breaks
            return "pause"

    config = {**ONE_SAMPLE, "max_train_steps": 4, "validation_images": 1}
    config["checkpoint_every_steps"] = 4
    unbroken = train(config, output_folder=str(tmp_path / "unbroken"))
    with monkeypatch.context() as monkeypatch:
        first = train(config, Aside())
    assert first.last == {"type": "stopped", "how": "pause", "step": 2}
    assert first.of("checkpoint")[-1]["held_out_loss"] is None
    second = train(config, resume_folder=str(tmp_path / "output" / "checkpoints"))
    assert first.history + second.history == unbroken.history
    assert load(_weights(second)).keys() == load(_weights(unbroken)).keys()


def test_two_runs_leave_equal_files(train: Train, finished: Finished) -> None:
    assert _weights(train()) == finished.weights
    assert _weights(train({"seed": 1})) != finished.weights


def test_bfloat16_trains_too(train: Train) -> None:
    recorder = train({"mixed_precision": "bf16", "max_train_steps": 3})
    assert recorder.last["type"] == "done"


class _Operators(TorchDispatchMode):
    """Counts what reaches the device, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func.__name__] = self.seen.get(func.__name__, 0) + 1
        return func(*args, **(kwargs or {}))


def test_a_step_waits_for_nothing_and_updates_in_one_launch(make_request: MakeRequest) -> None:
    training = make_training(make_request())
    training.do_step()
    with _Operators() as operators:
        training.do_step()
    names = operators.seen
    assert not [name for name in names if "_local_scalar_dense" in name or "nonzero" in name]
    assert [names[name] for name in names if "fused_adamw" in name] == [1]


def test_a_gradient_that_is_not_finite_changes_no_weight(make_request: MakeRequest) -> None:
    training = make_training(make_request())
    training.do_step()
    before = {name: value.detach().clone() for name, value in training.learner.parameters.items()}
    hook = training.learner.denoiser.conv_out.register_forward_hook(
        lambda module, inputs, output: output * float("nan")
    )
    assert not torch.isfinite(training.do_step().loss)
    assert all(
        torch.equal(before[name], value) for name, value in training.learner.parameters.items()
    )
    hook.remove()
    assert torch.isfinite(training.do_step().loss)
    assert not all(
        torch.equal(before[name], value) for name, value in training.learner.parameters.items()
    )

"""The held-out loss, and the choice of the result by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import training_app.trainer.loop as loop
from tests.training_app.trainer.conftest import ONE_SAMPLE, Recorder, make_training
from training_app.trainer.checkpoint import BEST
from training_app.trainer.config import resolve_config
from training_app.trainer.dataset import choose_held_out
from training_app.trainer.validation import held_out_loss

Train = Callable[..., Recorder]
MakeRequest = Callable[..., dict[str, Any]]
HELD_OUT = ONE_SAMPLE | {"validation_images": 2}


def test_held_out_pictures_are_chosen_by_the_seed() -> None:
    def choose(seed: int, count: int = 3, num_images: int = 20) -> tuple[int, ...]:
        asked = {"seed": seed, "validation_images": count}
        config = resolve_config(asked, architecture="sd1", method="lora", num_images=num_images)
        return choose_held_out(num_images, config)

    assert choose(1) == choose(1) == tuple(sorted(set(choose(1))))
    assert len({choose(seed) for seed in range(10)}) > 5
    assert choose(1, count=0) == ()
    assert len(choose(1, count=19)) == 19


def test_held_out_pictures_are_never_dealt(make_request: MakeRequest) -> None:
    training = make_training(make_request(HELD_OUT))
    dealt = {member for _ in range(20) for member in training.sampler.deal(4)[1]}
    assert len(training.held_out) == 2
    assert dealt | set(training.held_out) == set(range(6))
    assert not dealt & set(training.held_out)


def test_the_held_out_loss_depends_on_the_weights_alone(make_request: MakeRequest) -> None:
    config = HELD_OUT | {"dropout": 0.5, "caption_dropout": 0.5, "shuffle_captions": True}
    training = make_training(make_request(config))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = held_out_loss(training)
    assert first is not None and first > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(network.training for network in training.learner.networks.values())
    torch.rand(5)
    assert held_out_loss(training) == first
    training.do_step()
    assert held_out_loss(training) != first
    # A smaller micro-batch changes only how many are looked at together.
    again = make_training(make_request(config | {"train_batch_size": 1}))
    assert held_out_loss(again) == pytest.approx(first, rel=1e-4)


def test_without_held_out_pictures_there_is_no_such_loss(train: Train) -> None:
    recorder = train(ONE_SAMPLE | {"max_train_steps": 2})
    assert not recorder.of("validation")
    assert recorder.of("checkpoint")[-1]["held_out_loss"] is None


def test_it_is_told_with_every_checkpoint_and_falls(train: Train) -> None:
    config = HELD_OUT | {"max_train_steps": 80, "checkpoint_every_steps": 40, "snr_gamma": 0}
    recorder = train(config | {"learning_rate": 5e-3, "rank": 16})
    validations = recorder.of("validation")
    assert [message["step"] for message in validations] == [40, 80]
    assert [message["held_out_loss"] for message in recorder.of("checkpoint")] == [
        message["loss"] for message in validations
    ]
    assert validations[1]["loss"] < validations[0]["loss"]


@pytest.fixture
def fixed_losses(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Held-out losses by step, whatever the weights are."""
    losses = {3: 0.5, 6: 0.2, 9: 0.4, 12: 0.3}
    monkeypatch.setattr(loop, "held_out_loss", lambda training: losses[training.step])
    return losses


BEST_OF = HELD_OUT | {"choose": "best", "checkpoint_every_steps": 3, "learning_rate": 0.01}


@pytest.mark.parametrize("changes", [{}, {"use_ema": True}])
def test_the_best_checkpoint_is_the_result(
    train: Train, fixed_losses: dict[int, float], tmp_path: Path, changes: dict[str, Any]
) -> None:
    last = train(BEST_OF | changes | {"choose": "last"}, output_folder=str(tmp_path / "last"))
    best = train(BEST_OF | changes)
    assert last.last["outputs"]["step"] == 12
    assert best.last["outputs"]["step"] == 6
    # Its own samples come last; the last checkpoint has some as well.
    assert list(dict.fromkeys(sample["step"] for sample in best.of("sample"))) == [12, 6]
    sixth = tmp_path / "last" / "checkpoints" / "step-00000006" / "adapter.safetensors"
    chosen, expected = (load_file(path) for path in (best.last["outputs"]["weights"], sixth))
    assert set(chosen) == set(expected)
    assert all(torch.equal(chosen[name], expected[name]) for name in chosen)
    # The last checkpoint holds what a resumed run needs to come to the same result.
    folder = Path(best.of("checkpoint")[-1]["folder"])
    assert (folder / BEST / "adapter.safetensors").read_bytes() == (
        Path(best.of("checkpoint")[1]["folder"]) / "adapter.safetensors"
    ).read_bytes()
    names = [entry["name"] for entry in best.of("checkpoint")[-1]["files"]]
    assert f"{BEST}/adapter.safetensors" in names


def test_a_resumed_run_still_knows_the_best(
    train: Train, fixed_losses: dict[int, float], tmp_path: Path
) -> None:
    unbroken = train(BEST_OF, output_folder=str(tmp_path / "unbroken"))
    fixed_losses[10] = 0.9
    first = train(BEST_OF, Recorder(10, "pause"), output_folder=str(tmp_path / "first"))
    # Only the last checkpoint is at hand, as on another machine.
    folder = Path(first.of("checkpoint")[-1]["folder"])
    second = train(BEST_OF, resume_folder=str(folder.rename(tmp_path / "step-00000010")))
    assert second.last["outputs"]["step"] == 6
    chosen, expected = (load_file(run.last["outputs"]["weights"]) for run in (second, unbroken))
    assert all(torch.equal(chosen[name], expected[name]) for name in chosen)


def test_a_damaged_best_is_noticed(
    train: Train, fixed_losses: dict[int, float], tmp_path: Path
) -> None:
    first = train(BEST_OF, Recorder(9, "cancel"))
    folder = Path(first.of("checkpoint")[-1]["folder"])
    path = folder / BEST / "adapter.safetensors"
    data = path.read_bytes()
    # Not in place: the file may be the same one as the best checkpoint's.
    path.unlink()
    path.write_bytes(data[:-1] + b"\x07")
    second = train(BEST_OF, resume_folder=str(folder))
    assert [note["code"] for note in second.of("note")] == ["checkpoint_skipped", "resumed"]
    assert second.last["outputs"]["step"] == 6

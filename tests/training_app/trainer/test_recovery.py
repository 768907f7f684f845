"""Faults in the middle of a run: what is changed, and that the run comes through."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from studio_project.child_protocol import ChildError
from tests.training_app.trainer.conftest import ONE_SAMPLE, Finished, Recorder
from training_app.trainer.config import TrainingConfig, resolve_config
from training_app.trainer.recovery import Adjustments, adjust
from training_app.trainer.training import StepResult, Training

Train = Callable[..., Recorder]
Fault = Callable[[Training], None]
NON_FINITE = ChildError("non_finite_loss")
OUT_OF_MEMORY = torch.OutOfMemoryError("full")


def _config(**asked: Any) -> TrainingConfig:
    return resolve_config(asked, architecture="sd1", method="lora", num_images=10)


def test_a_loss_that_is_not_finite_halves_the_rate_at_most_twice() -> None:
    once = adjust(Adjustments(), NON_FINITE, _config())
    assert once is not None and once.learning_rate_factor == 0.5
    twice = adjust(once, NON_FINITE, _config())
    assert twice is not None and twice.learning_rate_factor == 0.25
    assert adjust(twice, NON_FINITE, _config()) is None


@pytest.mark.parametrize(
    ("size", "count", "smaller"), [(4, 1, (2, 2)), (6, 2, (3, 4)), (3, 1, (1, 3)), (2, 3, (1, 6))]
)
def test_memory_that_runs_out_halves_the_micro_batch_and_keeps_the_step(
    size: int, count: int, smaller: tuple[int, int]
) -> None:
    config = _config(train_batch_size=size, gradient_accumulation_steps=count)
    after = adjust(Adjustments(), OUT_OF_MEMORY, config)
    assert after is not None and after.micro_batches(config) == smaller
    assert adjust(after, OUT_OF_MEMORY, config) is None


def test_there_is_nothing_smaller_than_one_picture() -> None:
    assert adjust(Adjustments(), OUT_OF_MEMORY, _config(train_batch_size=1)) is None
    one_each = _config(train_batch_size=4, num_devices=4)
    assert adjust(Adjustments(), OUT_OF_MEMORY, one_each) is None
    three_each = _config(train_batch_size=6, num_devices=2)
    after = adjust(Adjustments(), OUT_OF_MEMORY, three_each)
    assert after is not None and after.micro_batches(three_each) == (2, 3)


def test_other_errors_are_not_helped_over() -> None:
    for error in (RuntimeError("broken"), ChildError("disk_full"), OSError("gone")):
        assert adjust(Adjustments(), error, _config()) is None


@pytest.fixture
def inject(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fault], list[int]]:
    """Lets something happen before every step, and counts the steps that were begun."""

    def do(fault: Fault) -> list[int]:
        begun: list[int] = []
        step = Training.do_step

        def with_fault(self: Training) -> StepResult:
            begun.append(self.step)
            fault(self)
            return step(self)

        monkeypatch.setattr(Training, "do_step", with_fault)
        return begun

    return do


def _poison(training: Training) -> None:
    """Makes the next prediction not a number."""

    def spoil(module: Any, inputs: Any, output: Any) -> Any:
        hook.remove()
        return output * float("nan")

    hook = training.learner.denoiser.conv_out.register_forward_hook(spoil)


def _weights(recorder: Recorder) -> dict[str, torch.Tensor]:
    return load_file(recorder.last["outputs"]["weights"])


def test_a_poisoned_step_goes_back_to_the_checkpoint_with_half_the_rate(
    train: Train, inject: Callable[[Fault], list[int]]
) -> None:
    faults = [7]

    def fault(training: Training) -> None:
        if training.step in faults:
            faults.remove(training.step)
            _poison(training)

    begun = inject(fault)
    recorder = train(
        ONE_SAMPLE | {"lr_scheduler": "constant", "lr_warmup_steps": 0, "learning_rate": 1e-3}
    )
    assert recorder.last["type"] == "done"
    (note,) = recorder.of("note")
    assert note["code"] == "rolled_back"
    assert note["params"] == {"step": 6, "learning_rate": 5e-4}
    # Whatever was poisoned is never told and never saved: its step is done again.
    assert begun == [*range(8), *range(6, 12)]
    assert [entry[0] for entry in recorder.history] == [*range(1, 8), *range(7, 13)]
    assert [entry[2] for entry in recorder.history] == [1e-3] * 7 + [5e-4] * 6
    assert all(torch.isfinite(tensor).all() for tensor in _weights(recorder).values())


def test_a_fault_before_the_first_checkpoint_begins_anew(
    train: Train, inject: Callable[[Fault], list[int]]
) -> None:
    faults = [1]

    def fault(training: Training) -> None:
        if training.step in faults:
            faults.clear()
            _poison(training)

    begun = inject(fault)
    recorder = train(ONE_SAMPLE | {"max_train_steps": 30})
    assert recorder.of("note")[0]["params"]["step"] == 0
    assert begun == [0, 1, *range(30)]


def test_faults_that_do_not_end_fail_the_run_after_two_rollbacks(
    train: Train, inject: Callable[[Fault], list[int]], tmp_path: Path
) -> None:
    inject(lambda training: _poison(training) if training.step == 7 else None)
    recorder = Recorder()
    with pytest.raises(ChildError) as error:
        train(ONE_SAMPLE, recorder)
    assert (error.value.code, error.value.params) == ("non_finite_loss", {"step": 8})
    notes = recorder.of("note")
    assert [note["code"] for note in notes] == ["rolled_back"] * 2
    rates = [note["params"]["learning_rate"] for note in notes]
    assert rates[1] == rates[0] / 2
    assert not (tmp_path / "output" / "adapter.safetensors").exists()


def test_memory_that_runs_out_once_is_told_and_every_picture_is_seen_as_often(
    train: Train, inject: Callable[[Fault], list[int]], finished: Finished
) -> None:
    def fault(training: Training) -> None:
        if training.step == 5 and training.micro_batches == (4, 1):
            raise torch.OutOfMemoryError("full")

    begun = inject(fault)
    recorder = train(ONE_SAMPLE)
    (note,) = recorder.of("note")
    assert note["code"] == "micro_batch_halved"
    assert note["params"] == {
        "step": 4,
        "train_batch_size": 2,
        "gradient_accumulation_steps": 2,
    }
    assert begun == [*range(6), *range(4, 12)]
    # Up to the fault it is the run without one; afterwards it sees the same pictures.
    assert recorder.history[:4] == finished.recorder.history[:4]
    assert recorder.of("checkpoint")[-1]["step"] == 12
    assert recorder.last["type"] == "done"


def test_memory_that_never_suffices_is_named(
    train: Train, inject: Callable[[Fault], list[int]]
) -> None:
    def fault(training: Training) -> None:
        raise torch.OutOfMemoryError("full")

    begun = inject(fault)
    recorder = Recorder()
    with pytest.raises(ChildError) as error:
        train(ONE_SAMPLE, recorder)
    assert error.value.code == "out_of_memory"
    assert begun == [0, 0]
    assert [note["code"] for note in recorder.of("note")] == ["micro_batch_halved"]


def test_a_resumed_run_knows_what_faults_have_changed(
    train: Train, inject: Callable[[Fault], list[int]], tmp_path: Path
) -> None:
    def fault(training: Training) -> None:
        if training.step == 5 and training.adjustments.batch_divisor == 1:
            raise torch.OutOfMemoryError("full")
        if training.step == 7 and training.adjustments.rollbacks == 0:
            _poison(training)

    inject(fault)
    unbroken = train(ONE_SAMPLE, output_folder=str(tmp_path / "unbroken"))
    assert [n["code"] for n in unbroken.of("note")] == ["micro_batch_halved", "rolled_back"]

    # Broken off right after the rollback.
    class Late(Recorder):
        def stop_requested(self) -> str | None:
            codes = [note["code"] for note in self.of("note")]
            return "cancel" if "rolled_back" in codes else None

    broken = train(ONE_SAMPLE, Late())
    assert broken.last["type"] == "stopped"
    resumed = train(ONE_SAMPLE, resume_folder=str(tmp_path / "output" / "checkpoints"))
    assert [note["code"] for note in resumed.of("note")] == ["resumed"]
    assert resumed.of("note")[0]["params"] == {"step": 6}
    first, second = _weights(unbroken), _weights(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first)

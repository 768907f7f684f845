"""The dry run: real steps on made-up pictures, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from studio_project.child_protocol import ChildError
from tests.training_app.trainer.conftest import Recorder
from training_app.trainer.preflight import MEASURED_STEPS, WARM_UP_STEPS
from training_app.trainer.run import run
from training_app.trainer.training import StepResult, Training

MakeRequest = Callable[..., dict[str, Any]]


@pytest.fixture
def dry_run(
    make_request: MakeRequest, images: list[dict[str, Any]], tmp_path: Path
) -> Callable[..., Recorder]:
    """Measures a training of pictures of which there is nothing but the size."""

    def do(
        config: dict[str, Any] | None = None, recorder: Recorder | None = None, **changes: Any
    ) -> Recorder:
        unseen = [image | {"path": "/nowhere", "caption": ""} for image in images]
        changes |= {"images": unseen, "cache_folder": str(tmp_path / "cache"), "dry_run": True}
        channel = recorder or Recorder()
        run(channel, make_request(config, **changes))
        return channel

    return do


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"train_text_encoder": True, "flip": True, "crop": "random"},
        {"optimizer": "prodigy", "use_ema": True, "mixed_precision": "bf16"},
    ],
)
def test_a_dry_run_measures_and_leaves_no_trace(
    dry_run: Callable[..., Recorder], tmp_path: Path, config: dict[str, Any]
) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    recorder = dry_run(config)
    assert torch.equal(torch.get_rng_state(), state)
    assert not (tmp_path / "output").exists()
    assert not (tmp_path / "cache" / "latents").exists()
    assert [message["phase"] for message in recorder.of("phase")] == ["preparing", "training"]
    assert not recorder.of("step") and not recorder.of("note")
    metrics = recorder.last["metrics"]
    assert recorder.last["type"] == "done"
    assert metrics["seconds_per_step"] > 0
    assert metrics["images_per_second"] == pytest.approx(4 / metrics["seconds_per_step"])
    assert metrics["peak_memory_bytes"] > 1e7
    assert metrics["gradient_checkpointing"] is False


def test_of_several_devices_the_share_of_one_is_measured(
    dry_run: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[int] = []
    step = Training.do_step

    def noting(self: Training) -> StepResult:
        shares.append(self.own_share)
        return step(self)

    monkeypatch.setattr(Training, "do_step", noting)
    metrics = dry_run({"num_devices": 2}).last["metrics"]
    assert set(shares) == {2}
    assert metrics["images_per_second"] == pytest.approx(4 / metrics["seconds_per_step"])


def test_every_method_and_family_can_be_measured(
    dry_run: Callable[..., Recorder], sdxl_folder: Path
) -> None:
    prior = {"prior_loss_weight": 1.0, "class_prompt": "a thing"}
    assert dry_run(prior, method="dreambooth").last["type"] == "done"
    other = {"architecture": "sdxl", "base_folder": str(sdxl_folder)}
    assert dry_run(**other).last["type"] == "done"


def test_it_does_real_steps_and_stops_when_told(
    dry_run: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []
    step = Training.do_step

    def counting(self: Training) -> StepResult:
        done.append(self.step)
        return step(self)

    monkeypatch.setattr(Training, "do_step", counting)
    dry_run()
    assert len(done) == WARM_UP_STEPS + MEASURED_STEPS
    assert dry_run(recorder=Recorder(stop_at=0)).last["type"] == "stopped"
    assert len(done) == WARM_UP_STEPS + MEASURED_STEPS


def test_a_step_that_does_not_fit_is_named(
    dry_run: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Training) -> StepResult:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(Training, "do_step", fail)
    with pytest.raises(ChildError) as error:
        dry_run()
    assert error.value.code == "out_of_memory"

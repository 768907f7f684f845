"""Whole runs: their story, their endings, their errors."""

from __future__ import annotations

import errno
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

import training_app.trainer.optimizers as optimizers
import training_app.trainer.preview as preview
import training_app.trainer.run as run_module
from models_app.inspection import inspect_adapter
from studio_project.child_protocol import ChildError
from tests.tiny import make_tiny_sd
from tests.training_app.trainer.conftest import Finished, Recorder
from training_app.trainer.files import CorruptFileError
from training_app.trainer.presets import CONTROL_PROMPT
from training_app.trainer.training import Training

Train = Callable[..., Recorder]
MakeRequest = Callable[..., dict[str, Any]]
#: The sample prompts of a training that asks for none.
CAPTIONS = {"sample_prompts": [], "control_prompt": CONTROL_PROMPT}


def test_a_run_tells_its_whole_story(train: Train, tmp_path: Path) -> None:
    recorder = train({"sample_every_steps": 5})
    phases = [message["phase"] for message in recorder.of("phase")]
    assert list(dict.fromkeys(phases)) == ["preparing", "caching", "training", "sampling", "saving"]
    steps = recorder.of("step")
    assert steps[-1]["step"] == steps[-1]["total_steps"] == 12
    assert [entry[0] for entry in recorder.history] == list(range(1, 13))
    assert {message["step"] for message in recorder.of("checkpoint")} == {5, 10, 12}
    done = recorder.last
    assert done["type"] == "done"
    outputs = done["outputs"]
    assert (outputs["layout"], outputs["step"]) == ("file", 12)
    layouts = [inspect_adapter(Path(outputs[name])).layout for name in ("weights", "kohya")]
    assert layouts == ["diffusers", "kohya"]
    assert done["metrics"]["steps"] == 12
    assert done["metrics"]["peak_memory_bytes"] > 1e7
    for message in recorder.messages:
        assert len(json.dumps(message, allow_nan=False)) < 64 * 1024


def test_samples_show_captions_and_one_prompt_without_the_trigger_word(train: Train) -> None:
    recorder = train(CAPTIONS | {"sample_every_steps": 5})
    samples = recorder.of("sample")
    assert [(sample["step"], sample["index"]) for sample in samples] == [
        (step, index) for step in (5, 10, 12) for index in range(3)
    ]
    prompts = [sample["prompt"] for sample in samples[:3]]
    assert prompts[:2] == ["a zorp on a red background", "a zorp on a blue background"]
    assert "zorp" not in prompts[2]
    assert [sample["seed"] for sample in samples[:3]] == [0, 1, 2]
    for sample in samples:
        with Image.open(sample["path"]) as picture:
            assert picture.size == (64, 64)


def test_own_sample_prompts_replace_the_captions(train: Train) -> None:
    config = {"sample_prompts": ["a zorp in space"], "control_prompt": "the zorp"}
    assert [sample["prompt"] for sample in train(config).of("sample")] == ["a zorp in space"]


def test_the_sample_is_what_plain_diffusers_makes_of_the_file(
    train: Train, base_folder: Path
) -> None:
    recorder = train({"learning_rate": 0.01})
    sample = recorder.of("sample")[0]
    pipeline = StableDiffusionPipeline.from_pretrained(
        base_folder, local_files_only=True, safety_checker=None
    )
    pipeline.set_progress_bar_config(disable=True)
    weights = Path(recorder.last["outputs"]["weights"])
    pipeline.load_lora_weights(weights.parent, weight_name=weights.name)
    picture = pipeline(
        sample["prompt"],
        width=64,
        height=64,
        num_inference_steps=2,
        guidance_scale=7.5,
        generator=torch.Generator().manual_seed(sample["seed"]),
    ).images[0]
    with Image.open(sample["path"]) as shown:
        difference = np.asarray(picture, int) - np.asarray(shown, int)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("how", ["cancel", "pause", "yield"])
def test_a_run_stops_at_a_step_boundary(train: Train, how: str) -> None:
    recorder = train(recorder=Recorder(stop_at=5, how=how))
    assert recorder.last == {"type": "stopped", "how": how, "step": recorder.last["step"]}
    assert 5 <= recorder.last["step"] < 12
    assert not recorder.of("done")
    saved = [message["step"] for message in recorder.of("checkpoint")]
    assert (recorder.last["step"] in saved) or how == "cancel"


def test_what_there_is_can_be_kept(train: Train) -> None:
    recorder = train(recorder=Recorder(stop_at=5, how="keep"))
    assert recorder.last["type"] == "done"
    assert 5 <= recorder.last["metrics"]["steps"] < 12
    assert Path(recorder.last["outputs"]["weights"]).exists()
    assert len(recorder.of("sample")) == 1
    # What goes on from there later finds where it stood.
    saved = [message["step"] for message in recorder.of("checkpoint")]
    assert saved[-1] == recorder.last["metrics"]["steps"]


def test_keeping_nothing_is_a_stop(train: Train) -> None:
    assert train(recorder=Recorder(stop_at=0, how="keep")).last["type"] == "stopped"


@pytest.mark.parametrize("error", [RuntimeError("broken"), torch.OutOfMemoryError("full")])
def test_failing_samples_do_not_break_a_training(
    train: Train, finished: Finished, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:

    def fail(*arguments: Any, **others: Any) -> None:
        torch.rand(1)
        raise error

    monkeypatch.setattr(preview, "render", fail)
    recorder = train({"sample_every_steps": 4})
    assert recorder.last["type"] == "done"
    assert len(recorder.of("note")) == 3
    code = "sample_failed" if error.args == ("broken",) else "sample_out_of_memory"
    assert recorder.of("note")[0]["code"] == code
    assert recorder.history == finished.recorder.history


def test_a_cancel_breaks_off_samples_at_the_end(train: Train) -> None:
    recorder = train(recorder=Recorder(stop_at=12))
    assert recorder.last["type"] == "stopped"
    assert not recorder.of("sample")


def test_an_extended_run_is_the_longer_run(train: Train, tmp_path: Path) -> None:
    config = {"lr_scheduler": "constant", "lr_warmup_steps": 2, "sample_every_steps": 0}
    long = train({**config, "max_train_steps": 9}, output_folder=str(tmp_path / "long"))
    short = train({**config, "max_train_steps": 5}, output_folder=str(tmp_path / "short"))
    more = {
        "resume_folder": str(tmp_path / "short" / "checkpoints"),
        "output_folder": str(tmp_path / "more"),
    }
    longer = train({**config, "max_train_steps": 9}, **more, extends=5)
    assert longer.history[0][0] == short.history[-1][0] + 1
    weights = [Path(run.last["outputs"]["weights"]).read_bytes() for run in (long, longer)]
    assert weights[0] == weights[1]


def test_a_run_that_extends_nothing_is_refused(train: Train, tmp_path: Path) -> None:
    train({"max_train_steps": 4}, output_folder=str(tmp_path / "other"))
    folder = str(tmp_path / "other" / "checkpoints")
    with pytest.raises(ChildError) as error:
        train({"max_train_steps": 9}, resume_folder=folder, extends=5)
    assert error.value.code == "checkpoint_gone"


def test_a_damaged_checkpoint_is_told_and_the_run_comes_to_the_same_end(
    train: Train, finished: Finished, tmp_path: Path
) -> None:
    train(recorder=Recorder(stop_at=7, how="cancel"))
    folder = tmp_path / "output" / "checkpoints"
    for path in folder.glob("*/optimizer.safetensors"):
        path.write_bytes(b"")
    recorder = train(resume_folder=str(folder))
    codes = [note["code"] for note in recorder.of("note")]
    assert codes[-1] == "started_anew"
    assert set(codes[:-1]) == {"checkpoint_skipped"}
    weights = Path(recorder.last["outputs"]["weights"])
    assert weights.read_bytes() == finished.weights


def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_no_file(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    step = Training.do_step
    monkeypatch.setattr(
        Training,
        "do_step",
        lambda self: step(self)._replace(loss=torch.tensor(float("nan") if self.step > 6 else 1)),
    )
    with pytest.raises(ChildError) as error:
        train()
    assert error.value.code == "non_finite_loss"
    assert not (tmp_path / "output" / "adapter.safetensors").exists()


@pytest.mark.parametrize(
    "changes",
    [{"architecture": "svd"}, {"base_folder": "/nowhere"}],
)
def test_a_base_that_cannot_be_trained_is_named(train: Train, changes: dict[str, Any]) -> None:
    with pytest.raises(ChildError) as error:
        train(**changes)
    assert error.value.code == "model_incompatible"


def test_a_full_disk_is_an_os_error(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_module, "export_lora", fail)
    with pytest.raises(OSError, match="No space"):
        train()


def test_memory_of_the_cpu_runs_out_by_name(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Training) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Training, "do_step", fail)
    with pytest.raises(ChildError) as error:
        train()
    assert error.value.code == "out_of_memory"


def test_a_file_that_cannot_be_proven_is_removed(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run_module, "EXPORT_TOLERANCE", -1)
    with pytest.raises(CorruptFileError):
        train()
    assert not (tmp_path / "output" / "adapter.safetensors").exists()


def test_a_v_prediction_base_trains(train: Train, tmp_path: Path) -> None:
    folder = make_tiny_sd(tmp_path / "sd2", prediction_type="v_prediction")
    recorder = train(base_folder=str(folder), architecture="sd2")
    assert recorder.last["type"] == "done"


def test_one_long_picture_is_enough(
    train: Train, images: list[dict[str, Any]], tmp_path: Path
) -> None:
    Image.new("RGB", (1, 2000), "red").save(tmp_path / "long.png")
    changes = {
        "path": str(tmp_path / "long.png"),
        "width": 1,
        "height": 2000,
        "caption": "日" * 4000,
    }
    recorder = train({"max_train_steps": 2}, images=[images[0] | changes])
    assert recorder.last["type"] == "done"


def test_an_optimizer_that_this_machine_lacks_is_named(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The site has it, this machine does not.
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    real = optimizers.build_optimizer

    def lacking(*arguments: Any) -> Any:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        return real(*arguments)

    monkeypatch.setattr(optimizers, "build_optimizer", lacking)
    with pytest.raises(ChildError) as error:
        train({"optimizer": "adamw8bit"})
    assert error.value.code == "invalid_request"
    assert error.value.params["field"] == "optimizer"


def test_pictures_may_have_repeats(train: Train, images: list[dict[str, Any]]) -> None:
    repeated = [images[0] | {"repeats": 3}, images[1]]
    recorder = train({"max_train_steps": 2}, images=repeated)
    assert recorder.last["type"] == "done"
    state = json.loads((Path(recorder.of("checkpoint")[-1]["folder"]) / "state.json").read_text())
    assert state["position"] == {"64x64": 8}


def test_gradient_norms_are_told_with_every_step(train: Train) -> None:
    recorder = train({"max_train_steps": 3, "max_grad_norm": 1e-3})
    assert all(len(entry) == 4 and entry[3] > 1e-3 for entry in recorder.history)


def test_checkpoints_come_as_often_as_asked(train: Train) -> None:
    recorder = train({"checkpoint_every_steps": 5})
    assert [message["step"] for message in recorder.of("checkpoint")] == [5, 10, 12]

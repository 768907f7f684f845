"""Checkpoints: whole or skipped, and of the right run."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import training_app.trainer.checkpoint as checkpoint_module
from tests.training_app.trainer.conftest import Finished
from training_app.trainer.checkpoint import (
    KEPT,
    MANIFEST,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from training_app.trainer.files import CorruptFileError, hash_file
from training_app.trainer.request import TrainingRequest

MakeRequest = Callable[..., dict[str, Any]]
FILES = ("adapter.safetensors", "optimizer.safetensors", "random.safetensors", "state.json")


@pytest.fixture
def folder(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the checkpoints that a run of twelve steps has left."""
    return Path(shutil.copytree(finished.output / "checkpoints", tmp_path / "checkpoints"))


def test_only_the_last_checkpoints_stay_and_nothing_half_written(folder: Path) -> None:
    assert len(list_checkpoints(folder)) == KEPT
    assert sorted(path.name for path in folder.iterdir()) == [
        "step-00000008",
        "step-00000010",
        "step-00000012",
    ]


def test_a_checkpoint_is_whole_and_says_what_is_in_it(finished: Finished) -> None:
    message = finished.recorder.of("checkpoint")[-1]
    assert message["step"] == 12
    assert {entry["name"] for entry in message["files"]} == {*FILES, MANIFEST}
    for entry in message["files"]:
        path = Path(message["folder"]) / entry["name"]
        assert (path.stat().st_size, hash_file(path)) == (entry["size"], entry["sha256"])


def test_a_checkpoint_holds_everything(folder: Path, make_request: MakeRequest) -> None:
    request = TrainingRequest.from_dict(make_request())
    loaded = load_checkpoint(list_checkpoints(folder)[0], request, [])
    assert loaded.step == 12
    assert loaded.position == {"64x64": 48}
    kinds = {name.split("/")[0] for name in loaded.optimizer.tensors}
    assert kinds == {"step", "exp_avg", "exp_avg_sq"}
    assert len(loaded.optimizer.tensors) == 3 * len(loaded.weights)
    assert loaded.random_states["cpu"].dtype == torch.uint8


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
@pytest.mark.parametrize("damage", ["missing", "truncated", "changed"])
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(
    folder: Path, make_request: MakeRequest, name: str, damage: str
) -> None:
    newest = list_checkpoints(folder)[0]
    path = newest / name
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    skipped: list[str] = []
    for resume_folder in (folder, newest):
        request = TrainingRequest.from_dict(make_request(resume_folder=str(resume_folder)))
        found = find_checkpoint(request, [], skipped.append)
        assert found is not None
        assert found.step == 10
    assert skipped == [newest.name] * 2


def test_a_checkpoint_may_lie_anywhere(
    folder: Path, make_request: MakeRequest, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "copies" / "f00"
    shutil.copytree(list_checkpoints(folder)[1], elsewhere)
    request = TrainingRequest.from_dict(make_request(resume_folder=str(elsewhere)))
    found = find_checkpoint(request, [], pytest.fail)
    assert found is not None and found.step == 10


def test_a_checkpoint_of_another_run_is_refused(folder: Path, make_request: MakeRequest) -> None:
    newest = list_checkpoints(folder)[0]
    images = make_request()["images"]
    others = [
        make_request({"seed": 5}),
        make_request({"learning_rate": 1e-3}),
        make_request(images=images[:-1]),
        make_request(images=[images[0] | {"caption": "else"}, *images[1:]]),
    ]
    for other in others:
        with pytest.raises(CorruptFileError, match="another run"):
            load_checkpoint(newest, TrainingRequest.from_dict(other), [])
    # Samples have no say in the weights.
    load_checkpoint(newest, TrainingRequest.from_dict(make_request({"sample_every_steps": 3})), [])


def test_no_checkpoint_is_no_error(make_request: MakeRequest, tmp_path: Path) -> None:
    for resume in (None, str(tmp_path / "nowhere")):
        request = TrainingRequest.from_dict(make_request(resume_folder=resume))
        assert find_checkpoint(request, [], lambda name: None) is None


def test_a_full_disk_leaves_no_half_checkpoint(
    folder: Path, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = TrainingRequest.from_dict(make_request())
    loaded = load_checkpoint(list_checkpoints(folder)[0], request, [])
    before = sorted(path.name for path in folder.iterdir())

    def fail(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "write_file", fail)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(folder, loaded, request)
    assert sorted(path.name for path in folder.iterdir()) == before

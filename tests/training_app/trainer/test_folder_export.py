"""Whole networks as files: complete, checked, nothing half-written."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import training_app.trainer.folder_export as folder_export
from models_app.loading import load_components
from studio_project.child_protocol import ChildError
from training_app.trainer.export import RenderSettings
from training_app.trainer.files import CorruptFileError
from training_app.trainer.folder_export import (
    export_folder,
    read_networks,
    verify_folder,
    write_networks,
)
from training_app.trainer.learner import Learner
from training_app.trainer.request import TrainingRequest

MakeRequest = Callable[..., dict[str, Any]]
Weights = dict[str, torch.Tensor]


@pytest.fixture
def request_(make_request: MakeRequest) -> TrainingRequest:
    config = {"train_text_encoder": True, "sample_inference_steps": 1}
    return TrainingRequest.from_dict(make_request(config, method="full"))


@pytest.fixture
def weights(request_: TrainingRequest) -> Weights:
    """The base's own weights, changed."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: value.detach() + 0.01 * torch.randn(value.shape, generator=generator)
        for name, value in Learner(request_).parameters.items()
    }


def _verify(folder: Path, weights: Weights, request: TrainingRequest) -> Any:
    settings = RenderSettings("a zorp", 1, request.config)
    return verify_folder(
        folder, weights, request, settings, dtype=torch.float32, on_step=lambda: None
    )


def test_what_is_read_back_is_what_was_written(
    request_: TrainingRequest, weights: Weights, tmp_path: Path
) -> None:
    write_networks(tmp_path, weights, request_)
    read = read_networks(tmp_path, weights)
    assert all(torch.equal(read[name], weights[name]) for name in weights)
    with safe_open(tmp_path / "text_encoder/model.safetensors", framework="pt") as stream:
        # Older readers know CLIP by this level of names.
        assert all(name.startswith("text_model.") for name in stream.keys())  # noqa: SIM118
    with pytest.raises(CorruptFileError, match="missing"):
        read_networks(tmp_path, [*weights, "unet.other"])
    with pytest.raises(CorruptFileError, match="something else"):
        read_networks(tmp_path, list(weights)[1:])


def test_a_folder_is_complete_and_holds_no_pickle(
    request_: TrainingRequest, weights: Weights, base_folder: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(base_folder, tmp_path / "base"))
    (base / "vae" / "old.bin").write_bytes(b"pickle")
    (base / "notes.txt").write_text("of no use")
    index = json.loads((base / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (base / "model_index.json").write_text(json.dumps(index))
    request = TrainingRequest(**(vars(request_) | {"base_folder": base}))
    export_folder(tmp_path / "model", weights, request)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "model_index.json",
        "scheduler",
        "text_encoder",
        "tokenizer",
        "unet",
        "vae",
    ]
    assert not list((tmp_path / "model").rglob("*.bin"))
    written = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert written == index | {"safety_checker": [None, None]}
    assert _verify(tmp_path / "model", weights, request).shape == (64, 64, 3)
    # Writing it must not have changed the base.
    unet = load_components(base, "sd1", only=("unet",))["unet"]
    assert not torch.equal(unet.conv_in.weight, weights["unet.conv_in.weight"])


def test_a_base_on_another_disk_is_copied(
    request_: TrainingRequest, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(folder_export.os, "link", fail)
    export_folder(tmp_path / "model", weights, request_)
    vae = "vae/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "model" / vae).read_bytes() == (request_.base_folder / vae).read_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_never_written(
    request_: TrainingRequest, weights: Weights, tmp_path: Path, value: float
) -> None:
    weights["text_encoder.final_layer_norm.bias"][3] = value
    with pytest.raises(ChildError) as error:
        export_folder(tmp_path / "model", weights, request_)
    assert error.value.code == "non_finite_loss"
    assert not (tmp_path / "model").exists()


def test_a_full_disk_leaves_no_half_folder(
    request_: TrainingRequest, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folder_export, "_take_over", fail)
    with pytest.raises(OSError, match="No space"):
        export_folder(tmp_path / "model", weights, request_)
    assert not (tmp_path / "model").exists()


def test_a_folder_that_holds_something_else_is_not_proven(
    request_: TrainingRequest, weights: Weights, tmp_path: Path
) -> None:
    export_folder(tmp_path / "model", weights, request_)
    name = "text_encoder.final_layer_norm.bias"
    with pytest.raises(CorruptFileError, match="not what was trained"):
        _verify(tmp_path / "model", weights | {name: weights[name] + 1}, request_)

"""Weights files: what plain diffusers makes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from models_app.architectures import ARCHITECTURES
from models_app.inspection import read_json
from models_app.kohya_file import to_kohya
from models_app.loading import load_components, make_pipeline
from studio_project.child_protocol import ChildError
from training_app.trainer.adapters import add_adapters
from training_app.trainer.export import RenderSettings, export_lora, read_lora, verify_export
from training_app.trainer.files import CorruptFileError, pack_tensors, read_tensors, write_file
from training_app.trainer.learner import copy_weights
from training_app.trainer.request import TrainingRequest

MakeRequest = Callable[..., dict[str, Any]]


@pytest.fixture(params=["attention", "attention+feed_forward", "all"])
def request_(make_request: MakeRequest, request: pytest.FixtureRequest) -> TrainingRequest:
    config = {"rank": 4, "alpha": 10, "targets": request.param, "sample_inference_steps": 3}
    return TrainingRequest.from_dict(make_request(config))


def _trained(request_: TrainingRequest) -> tuple[Any, dict[str, torch.nn.Parameter]]:
    """A denoiser whose adapters do something."""
    unet = load_components(request_.base_folder, "sd1", only=("unet",))["unet"]
    parameters = add_adapters(unet, request_.config, "unet")
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters.values():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return unet, parameters


def _render(pipeline: Any) -> np.ndarray:
    pixels: np.ndarray = pipeline(
        "a zorp",
        num_inference_steps=3,
        width=64,
        height=64,
        output_type="np",
        generator=torch.Generator().manual_seed(5),
    ).images[0]
    return pixels


def _plain(base_folder: Path) -> Any:
    pipeline = StableDiffusionPipeline.from_pretrained(
        base_folder, local_files_only=True, safety_checker=None
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_fresh_adapters_change_nothing(request_: TrainingRequest) -> None:
    parts = load_components(request_.base_folder, "sd1")
    pipeline = make_pipeline(ARCHITECTURES["sd1"], **parts)
    before = _render(pipeline)
    parameters = add_adapters(parts["unet"], request_.config, "unet")
    assert (_render(pipeline) == before).all()
    trainable = [p for p in parts["unet"].parameters() if p.requires_grad]
    assert {id(p) for p in trainable} == {id(p) for p in parameters.values()}
    assert {p.dtype for p in trainable} == {torch.float32}


def test_adapters_start_alike_and_leave_the_random_state_alone(request_: TrainingRequest) -> None:
    state = torch.get_rng_state()
    unets = [load_components(request_.base_folder, "sd1", only=("unet",))["unet"] for _ in range(2)]
    first, second = (add_adapters(unet, request_.config, "unet") for unet in unets)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_plain_diffusers_makes_the_trained_networks_picture(
    request_: TrainingRequest, tmp_path: Path
) -> None:
    parts = load_components(request_.base_folder, "sd1")
    unet, parameters = _trained(request_)
    plain = _plain(request_.base_folder)
    base_picture = _render(plain)
    own = make_pipeline(
        ARCHITECTURES["sd1"], **{**parts, "unet": unet, "scheduler": plain.scheduler}
    )
    expected = _render(own)
    export_lora(tmp_path / "a.safetensors", parameters, request_, 12)
    plain.load_lora_weights(tmp_path, weight_name="a.safetensors", adapter_name="x")
    assert (_render(plain) == expected).all()
    assert np.abs(expected - base_picture).max() > 0.05
    plain.unload_lora_weights()
    # Without the header's settings the strength would be 1 and the picture another.
    bare = pack_tensors(
        {name: value.detach() for name, value in parameters.items()}, {"format": "pt"}
    )
    (tmp_path / "bare.safetensors").write_bytes(bare)
    plain.load_lora_weights(tmp_path, weight_name="bare.safetensors", adapter_name="y")
    assert np.abs(_render(plain) - expected).max() > 0.01


def test_equal_adapters_give_equal_files(request_: TrainingRequest, tmp_path: Path) -> None:
    for name in ("a", "b"):
        export_lora(tmp_path / name, _trained(request_)[1], request_, 12)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_is_read_back_is_what_was_written(request_: TrainingRequest, tmp_path: Path) -> None:
    _, parameters = _trained(request_)
    export_lora(tmp_path / "a", parameters, request_, 12)
    fresh = add_adapters(
        load_components(request_.base_folder, "sd1", only=("unet",))["unet"],
        request_.config,
        "unet",
    )
    copy_weights(fresh, read_lora(tmp_path / "a"))
    assert all(torch.equal(fresh[name], parameters[name]) for name in parameters)


def test_adapters_of_another_rank_are_refused(request_: TrainingRequest) -> None:
    _, parameters = _trained(request_)
    wrong = {name: value[:1] for name, value in parameters.items()}
    with pytest.raises(ValueError, match="shape"):
        copy_weights(parameters, wrong)
    with pytest.raises(ValueError, match="something else"):
        copy_weights(parameters, {})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_never_written(
    request_: TrainingRequest, tmp_path: Path, value: float
) -> None:
    _, parameters = _trained(request_)
    next(iter(parameters.values())).data[0, 0] = value
    with pytest.raises(ChildError) as error:
        export_lora(tmp_path / "a.safetensors", parameters, request_, 12)
    assert error.value.code == "non_finite_loss"
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_holds_something_else_is_not_proven(
    request_: TrainingRequest, tmp_path: Path
) -> None:
    _, parameters = _trained(request_)
    settings = RenderSettings("a zorp", 1, request_.config)

    def verify(name: str, wanted: dict[str, torch.Tensor]) -> np.ndarray:
        return verify_export(
            [tmp_path / name],
            wanted,
            request_,
            settings,
            dtype=torch.float32,
            on_step=lambda: None,
        )[0]

    export_lora(tmp_path / "a.safetensors", parameters, request_, 12)
    to_kohya(
        tmp_path / "a.safetensors",
        tmp_path / "k.safetensors",
        architecture="sd1",
        unet_config=read_json(request_.base_folder / "unet" / "config.json"),
    )
    name = next(iter(parameters))
    for file in ("a.safetensors", "k.safetensors"):
        assert verify(file, dict(parameters)).shape == (64, 64, 3)
        with pytest.raises(CorruptFileError, match="not what was trained"):
            verify(file, {**parameters, name: parameters[name] + 1})
        with pytest.raises(CorruptFileError, match="other layers"):
            verify(file, {key: value for key, value in parameters.items() if key != name})
    weights = {key: value.detach() for key, value in parameters.items()}
    write_file(tmp_path / "a.safetensors", pack_tensors(weights, {"format": "pt"}))
    kohya, _ = read_tensors(tmp_path / "k.safetensors")
    bare = {key: value for key, value in kohya.items() if not key.endswith(".alpha")}
    write_file(tmp_path / "k.safetensors", pack_tensors(bare, {"format": "pt"}))
    for file in ("a.safetensors", "k.safetensors"):
        with pytest.raises(CorruptFileError, match="alpha"):
            verify(file, dict(parameters))
    strange = {key.replace("attn1", "attn9"): value for key, value in kohya.items()}
    write_file(tmp_path / "k.safetensors", pack_tensors(strange, {}))
    with pytest.raises(CorruptFileError, match="does not fit"):
        verify("k.safetensors", dict(parameters))

"""Guards before a LoRA: whole, fitting, unchanged; and several at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from generation_app.engine.errors import EngineError
from generation_app.engine.resident import Engine
from models_app.adapter_names import parse_tensor_name
from models_app.loading import load_pipeline
from tests.generation_app.engine.conftest import Recorder, make_lora

Order = Callable[..., dict[str, Any]]


def paint(engine: Engine, message: dict[str, Any]) -> np.ndarray:
    line = Recorder()
    engine.run(line, message)
    return np.array(Image.open(line.of("image")[0]["path"]))


def refused(engine: Engine, message: dict[str, Any]) -> EngineError:
    before = paint(engine, message | {"loras": []})
    with pytest.raises(EngineError) as caught:
        paint(engine, message)
    assert np.array_equal(paint(engine, message | {"loras": []}), before)
    return caught.value


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_two_loras_with_weights_equal_plain_diffusers(
    base: Path, lora: Path, text_lora: Path, order: Order
) -> None:
    torch.set_num_threads(1)
    message = order(loras=[(lora, 0.6), (text_lora, -0.3)])
    made = paint(Engine(), message)
    pipe = load_pipeline(base, "sd1")
    for name, file in (("a", lora), ("b", text_lora)):
        pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
    pipe.set_adapters(["a", "b"], [0.6, -0.3])
    image = pipe(
        "a cat",
        width=64,
        height=64,
        num_inference_steps=3,
        guidance_scale=5.0,
        generator=torch.Generator("cpu").manual_seed(11),
    ).images[0]
    assert np.array_equal(made, np.array(image))


def test_a_lora_of_another_base_is_refused(order: Order, lora: Path, tmp_path: Path) -> None:
    wide = {
        key: torch.cat([value, value], dim=-1) if ".down." in key else value
        for key, value in load_file(lora).items()
    }
    other = tmp_path / "other.safetensors"
    save_file(wide, other)
    error = refused(Engine(), order(loras=[(other, 1.0)]))
    assert (error.code, error.params["name"]) == ("model_incompatible", "other")


def test_a_lora_whose_weights_find_no_place_is_refused(
    order: Order, lora: Path, tmp_path: Path
) -> None:
    weights = load_file(lora)
    strange = {key.replace("attn1", "attn9", 1): value.clone() for key, value in weights.items()}
    nowhere = {"unet.nothing.lora.down.weight": torch.ones(4, 32)}
    for name, state in (("some", weights | strange), ("all", nowhere)):
        file = tmp_path / f"{name}.safetensors"
        save_file(state, file)
        error = refused(Engine(), order(loras=[(file, 1.0)]))
        assert error.code == "model_incompatible"


def as_kohya(lora: Path, path: Path, alpha: float = 7.0) -> Path:
    """Write a LoRA as other trainers do: underscores, lora_down, alpha beside the weights."""
    weights = {}
    for key, value in load_file(lora).items():
        parsed = parse_tensor_name(key)
        assert parsed is not None
        prefix = "lora_unet" if parsed.component == "unet" else "lora_te_text_model"
        name = f"{prefix}_{parsed.flat}"
        if parsed.part == "magnitude":
            sides = 3 if value.ndim == 4 else 1
            weights[f"{name}.dora_scale"] = value.reshape(-1, *[1] * sides).contiguous()
        else:
            weights[f"{name}.lora_{parsed.part}.weight"] = value
        weights[f"{name}.alpha"] = torch.tensor(alpha)
    save_file(weights, path)
    return path


def with_plain_diffusers(base: Path, file: Path, weight: float = 1.0) -> np.ndarray:
    pipe = load_pipeline(base, "sd1")
    pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name="a")
    pipe.set_adapters(["a"], [weight])
    return np.array(
        pipe(
            "a cat",
            width=64,
            height=64,
            num_inference_steps=3,
            guidance_scale=5.0,
            generator=torch.Generator("cpu").manual_seed(11),
        ).images[0]
    )


@pytest.fixture(scope="module")
def dora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dora")
    return make_lora(base, folder / "dora.safetensors", seed=3, text=True, dora=True)


def test_a_dora_equals_plain_diffusers_in_both_layouts(
    base: Path, dora: Path, order: Order, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    wanted = with_plain_diffusers(base, dora)
    engine = Engine()
    kohya = as_kohya(dora, tmp_path / "kohya.safetensors")
    for file in (dora, kohya):
        assert np.array_equal(paint(engine, order(loras=[(file, 1.0)])), wanted)
    assert not np.array_equal(paint(engine, order()), wanted)


def test_a_dora_and_a_lora_together_equal_plain_diffusers_and_leave_no_trace(
    base: Path, dora: Path, lora: Path, order: Order
) -> None:
    torch.set_num_threads(1)
    engine = Engine()
    before = paint(engine, order())
    together = paint(engine, order(loras=[(lora, 0.5), (dora, 0.7)]))
    assert not np.array_equal(together, before)
    assert np.array_equal(
        paint(engine, order(loras=[(dora, 0.7)])), with_plain_diffusers(base, dora, 0.7)
    )
    assert np.array_equal(paint(engine, order()), before)


def test_a_dora_of_columns_or_of_some_layers_is_refused(
    order: Order, dora: Path, tmp_path: Path
) -> None:
    weights = load_file(as_kohya(dora, tmp_path / "kohya.safetensors"))
    scales = [key for key in weights if key.endswith(".dora_scale")]
    some = {key: value for key, value in weights.items() if key != scales[0]}
    columns = weights | {
        key: torch.ones(1, weights[key.replace("dora_scale", "lora_down.weight")].shape[1])
        for key in scales
    }
    for name, state, reason in (
        ("some", some, "mixed_dora"),
        ("columns", columns, "input_dora"),
    ):
        file = tmp_path / f"{name}.safetensors"
        save_file(state, file)
        assert refused(Engine(), order(loras=[(file, 1.0)])).params["reason"] == reason


@pytest.mark.parametrize(
    "words, title",
    [
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "Stable Diffusion XL"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v/lora"}, "Stable Diffusion 2.x"),
    ],
)
def test_a_lora_of_another_architecture_is_refused_by_name(
    order: Order, lora: Path, tmp_path: Path, words: dict[str, str], title: str
) -> None:
    file = tmp_path / "other.safetensors"
    save_file(load_file(lora), file, metadata=words)
    params = refused(Engine(), order(loras=[(file, 1.0)])).params
    assert (params["reason"], params["made_for"]) == ("architecture", title)
    assert params["wanted"] == "Stable Diffusion 1.x"


def test_layers_of_different_rank_and_alpha_keep_them(
    base: Path, lora: Path, order: Order, tmp_path: Path
) -> None:
    """Half the layers are written with twice the rank and the same product."""
    weights = load_file(as_kohya(lora, tmp_path / "kohya.safetensors"))
    keys = sorted(key.removesuffix(".alpha") for key in weights if key.endswith(".alpha"))
    for key in keys[::2]:
        down, up = weights[f"{key}.lora_down.weight"], weights[f"{key}.lora_up.weight"]
        weights[f"{key}.lora_down.weight"] = torch.cat([down, torch.zeros_like(down)])
        weights[f"{key}.lora_up.weight"] = torch.cat([up, torch.zeros_like(up)], dim=1)
        weights[f"{key}.alpha"] = torch.tensor(14.0)
    file = tmp_path / "wide.safetensors"
    save_file(weights, file)
    engine = Engine()
    ours = paint(engine, order(loras=[(lora, 1.0)]))
    wide = paint(engine, order(loras=[(file, 1.0)]))
    assert np.abs(wide.astype(int) - ours.astype(int)).max() <= 1


def test_broken_changed_and_missing_files_are_refused(
    order: Order, lora: Path, tmp_path: Path
) -> None:
    engine = Engine()
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(lora.read_bytes()[:500])
    assert refused(engine, order(loras=[(broken, 1.0)])).code == "model_incompatible"
    pickled = tmp_path / "pickled.safetensors"
    torch.save({"lora": torch.ones(1)}, pickled)
    assert refused(engine, order(loras=[(pickled, 1.0)])).params["reason"] == "pickle_weights"
    message = order(loras=[(lora, 1.0)])
    message["loras"][0]["sha256"] = "0" * 64
    assert refused(engine, message).params["reason"] == "hash_mismatch"
    message["loras"][0] |= {"path": str(tmp_path / "gone.safetensors")}
    assert refused(engine, message).code == "model_unavailable"


def test_the_same_lora_twice_is_refused(order: Order, lora: Path) -> None:
    assert refused(Engine(), order(loras=[(lora, 1.0), (lora, 0.5)])).code == "invalid_request"


def test_kohya_names_find_their_place(
    lora: Path, text_lora: Path, order: Order, tmp_path: Path
) -> None:
    engine = Engine()
    for file, alpha in ((lora, 7.0), (text_lora, 5.0)):
        kohya = as_kohya(file, tmp_path / file.name, alpha)
        ours = paint(engine, order(loras=[(file, 1.0)]))
        assert np.array_equal(paint(engine, order(loras=[(kohya, 1.0)])), ours)


def test_the_adapter_file_carries_its_alpha(lora: Path) -> None:
    from safetensors import safe_open

    with safe_open(lora, "pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    assert metadata["unet.lora_alpha"] == 7
    assert metadata["unet.r"] == 4

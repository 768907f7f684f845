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
from models_app.loading import load_pipeline
from tests.generation_app.engine.conftest import Recorder

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


def test_a_dora_is_refused_rather_than_painted_wrong(
    order: Order, lora: Path, tmp_path: Path
) -> None:
    weights = load_file(lora)
    key = next(key for key in weights if ".down." in key)
    weights[key.replace("lora.down.weight", "lora_magnitude_vector.dora_scale")] = torch.ones(4)
    file = tmp_path / "dora.safetensors"
    save_file(weights, file)
    error = refused(Engine(), order(loras=[(file, 1.0)]))
    assert error.params["reason"] == "dora"


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


def test_kohya_names_find_their_place(base: Path, lora: Path, order: Order, tmp_path: Path) -> None:
    """A LoRA as other trainers write it: underscores, lora_down, alpha beside the weights."""
    weights = {}
    for key, value in load_file(lora).items():
        module, kind = key.removeprefix("unet.").rsplit(".lora.", 1)
        name = "lora_unet_" + module.replace(".", "_")
        weights[f"{name}.lora_{kind}"] = value
        weights[f"{name}.alpha"] = torch.tensor(7.0)
    file = tmp_path / "kohya.safetensors"
    save_file(weights, file)
    engine = Engine()
    ours = paint(engine, order(loras=[(lora, 1.0)]))
    assert np.array_equal(paint(engine, order(loras=[(file, 1.0)])), ours)


def test_the_adapter_file_carries_its_alpha(lora: Path) -> None:
    from safetensors import safe_open

    with safe_open(lora, "pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    assert metadata["unet.lora_alpha"] == 7
    assert metadata["unet.r"] == 4

"""What stands in a PNG can be read back, by us and by others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from generation_app.engine.metadata import a1111_text, save_picture
from generation_app.engine.recall import parse_a1111, recall_picture
from generation_app.engine.resident import Engine
from tests.generation_app.engine.conftest import Recorder

PARAMETERS: dict[str, Any] = {
    "prompt": 'a 🦊 "fox", sitting\nNegative prompt: not really\nin a forêt',
    "negative_prompt": "blurry,\nугол: плохо",
    "num_inference_steps": 20,
    "guidance_scale": 6.5,
    "scheduler": "dpmpp_2m_karras",
    "seed": 4294967295,
    "width": 64,
    "height": 96,
    "clip_skip": 1,
    "model": {"name": "Fox, the: model", "sha256": "ab" * 32},
    "loras": [{"name": "ink <v1>", "weight": -0.5, "sha256": "cd" * 32}],
    "libraries": {"diffusers": "1.2"},
}


def write(path: Path, parameters: dict[str, Any]) -> Path:
    save_picture(Image.new("RGB", (8, 8)), path, parameters)
    return path


def recalled(path: Path) -> dict[str, Any] | None:
    with path.open("rb") as file:
        found = recall_picture(file)
    return found.values if found else None


def test_our_own_json_comes_back_exactly(tmp_path: Path) -> None:
    assert recalled(write(tmp_path / "a.png", PARAMETERS)) == PARAMETERS


def test_the_a1111_text_has_the_form_that_others_read() -> None:
    simple = PARAMETERS | {"prompt": "a fox", "negative_prompt": "blurry"}
    assert a1111_text(simple).split("\n") == [
        "a fox <lora:ink _v1_:-0.5>",
        "Negative prompt: blurry",
        "Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 4294967295, Size: 64x96, "
        'Model hash: ababababab, Model: "Fox, the: model", Clip skip: 2, '
        'Lora hashes: "ink _v1_: cdcdcdcdcdcd", Version: Studio (diffusers 1.2)',
    ]


def test_the_a1111_text_is_read_back_under_our_names() -> None:
    simple = PARAMETERS | {
        "prompt": "a 🦊\nin two lines",
        "negative_prompt": "blurry,\nугол: плохо",
    }
    found = parse_a1111(a1111_text(simple))
    for key in (
        "prompt",
        "negative_prompt",
        "num_inference_steps",
        "guidance_scale",
        "scheduler",
        "seed",
        "width",
        "height",
        "clip_skip",
    ):
        assert found[key] == simple[key]
    assert found["model"] == {"name": "Fox, the: model", "sha256": "ababababab"}
    assert found["loras"] == [{"name": "ink _v1_", "weight": -0.5}]


def test_a_picture_of_a1111_is_read(tmp_path: Path) -> None:
    text = (
        "masterpiece, fox <lora:ink:0.8>\nNegative prompt: bad\nSteps: 28, Sampler: DPM++ 2M, "
        "Schedule type: Karras, CFG scale: 7, Seed: 12, Size: 512x768, Model: v1-5, "
        'Version: "1.9, x"'
    )
    info = PngInfo()
    info.add_text("parameters", text)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    found = recalled(tmp_path / "a.png")
    assert found is not None
    assert found["scheduler"] == "dpmpp_2m_karras"
    assert (found["width"], found["height"], found["prompt"]) == (512, 768, "masterpiece, fox")
    assert found["loras"] == [{"name": "ink", "weight": 0.8}]


@pytest.mark.parametrize("text", ["only a prompt", "Steps: many, Seed: x, Size: 3", "", "\n\n:,:"])
def test_texts_of_no_form_are_read_as_far_as_they_go(text: str) -> None:
    assert isinstance(parse_a1111(text)["prompt"], str)


def test_a_picture_that_says_nothing_or_lies_gives_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    assert recalled(tmp_path / "plain.png") is None
    info = PngInfo()
    info.add_itxt("studio", "{broken")
    Image.new("RGB", (8, 8)).save(tmp_path / "broken.png", pnginfo=info)
    assert recalled(tmp_path / "broken.png") is None
    (tmp_path / "no.png").write_text("no picture")
    with pytest.raises(OSError, match="cannot identify"):
        recalled(tmp_path / "no.png")


def test_a_painted_file_tells_everything_and_no_path(
    order: Callable[..., dict[str, Any]], lora: Path, base: Path, tmp_path: Path
) -> None:
    line = Recorder()
    message = order(
        prompt="🦊\nzwei",
        seeds=[7, 8],
        loras=[(lora, 0.5)],
        metadata={"base_name": "Tiny base", "job": "1"},
        model_name="Trained",
    )
    Engine().run(line, message)
    second = line.of("image")[1]
    found = recalled(Path(second["path"]))
    assert found is not None
    assert found.pop("metadata") == {"base_name": "Tiny base", "job": "1"}
    assert found == second["parameters"]
    assert (found["prompt"], found["seed"], found["num_images"]) == ("🦊\nzwei", 8, 1)
    assert found["model"] == {"name": "Tiny base", "sha256": "b" * 64, "architecture": "sd1"}
    assert found["loras"][0]["weight"] == 0.5
    assert {"torch", "diffusers", "transformers", "peft"} == set(found["libraries"])
    for folder in (base, lora, tmp_path):
        assert str(folder) not in json.dumps(found)
        assert str(folder).encode() not in Path(second["path"]).read_bytes()

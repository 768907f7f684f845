"""What other programs write into their files is read; what lies is survived."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from generation_app.engine.metadata import save_picture
from generation_app.engine.recall import (
    Recalled,
    parse_a1111,
    parse_comfyui,
    parse_invokeai,
    recall_picture,
)
from tests.generation_app.engine.test_metadata import PARAMETERS

COMFY: dict[str, Any] = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 42, "steps": 20, "cfg": 8, "sampler_name": "dpmpp_2m", "scheduler": "karras",
            "denoise": 1, "model": ["11", 0], "positive": ["6", 0], "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {
        "class_type": "CheckpointLoaderSimple",
        "inputs": {"ckpt_name": "sd15/fox v1.safetensors"},
    },
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["12", 0], "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["4", 1]}},
    "10": {
        "class_type": "LoraLoader",
        "inputs": {"lora_name": "ink.safetensors", "strength_model": 0.8, "model": ["4", 0]},
    },
    "11": {
        "class_type": "LoraLoader",
        "inputs": {"lora_name": "old.safetensors", "strength_model": 0.5, "model": ["10", 0]},
    },
    "12": {"class_type": "PrimitiveString", "inputs": {"value": "a fox"}},
}  # fmt: skip
INVOKE = {
    "positive_prompt": "a fox", "negative_prompt": "blurry", "width": 512, "height": 768,
    "seed": 42, "steps": 20, "cfg_scale": 7.5, "scheduler": "dpmpp_2m_k", "strength": 0.6,
    "model": {"name": "fox v1", "hash": "sha256:abcdef", "base": "sd-1"},
    "loras": [{"model": {"name": "ink", "hash": "blake3:11"}, "weight": 0.75}],
}  # fmt: skip


def written(**texts: str) -> BytesIO:
    info, out = PngInfo(), BytesIO()
    for key, text in texts.items():
        info.add_itxt(key, text)
    Image.new("RGB", (8, 8)).save(out, "PNG", pnginfo=info)
    out.seek(0)
    return out


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
def test_our_own_json_comes_back_from_every_format(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    save_picture(Image.new("RGB", (8, 8), "teal"), path, PARAMETERS)
    with path.open("rb") as file:
        assert recall_picture(file) == Recalled("studio", PARAMETERS)
    with Image.open(path) as image:
        assert image.format == kind.upper()


def test_png_and_webp_keep_the_pixels_and_jpeg_nearly(tmp_path: Path) -> None:
    picture = Image.effect_noise((64, 64), 60).convert("RGB")
    for kind, exact in (("png", True), ("webp", True), ("jpeg", False)):
        path = tmp_path / f"a.{kind}"
        assert save_picture(picture, path, PARAMETERS) == path.stat().st_size
        with Image.open(path) as image:
            assert (image.convert("RGB").tobytes() == picture.tobytes()) is exact


def test_other_programs_read_the_text_of_a_jpeg(tmp_path: Path) -> None:
    simple = PARAMETERS | {"prompt": "ein Fuchs 🦊"}
    save_picture(Image.new("RGB", (8, 8)), tmp_path / "a.jpeg", simple)
    with Image.open(tmp_path / "a.jpeg") as image:
        comment = image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    assert comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf-16-be").startswith("ein Fuchs 🦊 <lora:ink")


def test_texts_too_long_for_a_jpeg_leave_our_json_out(tmp_path: Path) -> None:
    long = PARAMETERS | {"prompt": "🦊" * 8000}
    save_picture(Image.new("RGB", (8, 8)), tmp_path / "a.jpeg", long)
    with (tmp_path / "a.jpeg").open("rb") as file:
        found = recall_picture(file)
    assert found is not None and found.source == "a1111"


def test_comfyui_is_read_through_its_links() -> None:
    found = recall_picture(written(prompt=json.dumps(COMFY), workflow="{}"))
    assert found == Recalled(
        "comfyui",
        {
            "prompt": "a fox", "negative_prompt": "blurry", "num_inference_steps": 20,
            "guidance_scale": 8.0, "seed": 42, "scheduler": "dpmpp_2m_karras", "width": 512,
            "height": 768, "model": {"name": "fox v1", "sha256": ""},
            "loras": [{"name": "ink", "weight": 0.8}, {"name": "old", "weight": 0.5}],
        },
    )  # fmt: skip


def test_comfyui_in_circles_ends() -> None:
    node = {"class_type": "KSampler", "inputs": {"model": ["1", 0], "positive": ["1", 0]}}
    node["inputs"]["seed"] = ["1", 0]
    node["inputs"]["conditioning"] = ["1", 0]
    assert parse_comfyui({"1": node}) == {"loras": []}
    assert parse_comfyui({"1": {"class_type": "Note"}, "2": 3}) is None


def test_invokeai_is_read() -> None:
    found = recall_picture(written(invokeai_metadata=json.dumps(INVOKE)))
    assert found == Recalled(
        "invokeai",
        {
            "prompt": "a fox", "negative_prompt": "blurry", "num_inference_steps": 20,
            "guidance_scale": 7.5, "seed": 42, "scheduler": "dpmpp_2m_karras", "width": 512,
            "height": 768, "strength": 0.6, "model": {"name": "fox v1", "sha256": "abcdef"},
            "loras": [{"name": "ink", "sha256": "", "weight": 0.75}],
        },
    )  # fmt: skip


def test_a1111_with_a_hires_pass_and_with_a_picture() -> None:
    end = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, "
    hires = parse_a1111(
        f"a fox\n{end}Denoising strength: 0.4, Hires upscale: 2, Hires steps: 9, "
        "Hires upscaler: Latent (bicubic), Version: v1.9"
    )
    assert (hires["hires_scale"], hires["hires_strength"], hires["hires_steps"]) == (2.0, 0.4, 9)
    assert hires["hires_upscaler"] == "latent" and "strength" not in hires
    img2img = parse_a1111(f"a fox\n{end}Denoising strength: 0.4, Mask blur: 4")
    assert (img2img["strength"], img2img["mask_blur"]) == (0.4, 4)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [*INVOKE, *COMFY, "inputs", "class_type", "name", "seed", "model", "text"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(deadline=None, database=None)
@given(st.dictionaries(st.sampled_from([*INVOKE, "1", "2"]), _JSON, max_size=5))
def test_whatever_stands_in_a_file_is_survived(value: dict[str, Any]) -> None:
    parse_invokeai(value)
    parse_comfyui(value)
    sampler = {"class_type": "KSampler", "inputs": {"model": ["1", 0], "positive": ["2", 0]}}
    parse_comfyui({"0": sampler, **value})


@pytest.mark.parametrize("text", ["{", "[1]", r'{"a": "\ud800"}', "[" * 100_000, "null"])
def test_json_that_lies_says_nothing(text: str) -> None:
    for key in ("studio", "invokeai_metadata", "prompt"):
        assert recall_picture(written(**{key: text})) is None


@pytest.mark.parametrize("number", ["1e999", "NaN", "1" + "0" * 400, "true", '"7"'])
def test_numbers_that_nobody_can_count_with_are_left_out(number: str) -> None:
    inputs = f'{{"steps": {number}, "cfg": {number}, "denoise": {number}, "model": ["1", 0]}}'
    lora = f'{{"lora_name": "ink", "strength_model": {number}}}'
    graph = f'{{"0": {{"class_type": "KSampler", "inputs": {inputs}}}, "1": {{"inputs": {lora}}}}}'
    found = recall_picture(written(prompt=graph))
    assert found is not None
    assert found.values == {"loras": [{"name": "ink", "weight": 1.0}]}
    loras = f'[{{"model": {{"name": "ink"}}, "weight": {number}}}]'
    invoke = recall_picture(written(invokeai_metadata=f'{{"loras": {loras}}}'))
    assert invoke is not None
    assert invoke.values["loras"] == [{"name": "ink", "sha256": "", "weight": 1.0}]


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "piece", [" ", "a", "a ", 'a:"', 'a:"b,', "<lora:", "<lora:a:", "a,", "\\"]
)
def test_hostile_texts_take_no_longer_than_others(piece: str) -> None:
    parse_a1111(piece * (200_000 // len(piece)))

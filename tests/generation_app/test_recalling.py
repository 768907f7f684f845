"""A dropped file or a pasted text becomes the values of a form, with models of this site."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rest_framework.test import APIClient

from generation_app.engine.metadata import STUDIO_KEY, save_picture
from studio_project.models import User
from tests.factories import make_base, make_lora, picture

Api = Callable[..., APIClient]
PATH = "/api/generate/recall/"
TEXT = (
    "a fox <lora:Ink:0.8> <lora:Gone:1>\nNegative prompt: blurry\n"
    "Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 42, Size: 512x768, "
    "Model: Base, Denoising strength: 0.4, Clip skip: 2"
)


def recall(client: APIClient, content: bytes, name: str = "a.png") -> Any:
    return client.post(PATH, {"file": SimpleUploadedFile(name, content)}, format="multipart")


def test_a_pasted_text_fills_the_form(api: Api, alice: User, bob: User) -> None:
    base = make_base()
    lora = make_lora(alice, base, "Ink", type="dreambooth")
    answer = api(alice).post(PATH, {"text": TEXT})
    assert answer.status_code == 200, answer.data
    assert answer.json() == {
        "source": "a1111",
        "mode": None,
        "values": {
            "prompt": "a fox", "negative_prompt": "blurry", "num_inference_steps": 20,
            "scheduler": "dpmpp_2m_karras", "guidance_scale": 6.5, "seed": 42, "width": 512,
            "height": 768, "strength": 0.4, "clip_skip": 1,
        },
        "model": {"id": base.pk, "name": "Base", "title": "Base"},
        "loras": [{"model": lora.pk, "name": "Ink", "title": "Ink", "weight": 0.8}],
        "missing": [{"kind": "lora", "name": "Gone"}],
    }  # fmt: skip
    # Bob does not see the LoRA.
    names = [entry["name"] for entry in api(bob).post(PATH, {"text": TEXT}).json()["missing"]]
    assert names == ["Ink", "Gone"]


def test_our_own_file_is_found_by_hash_whatever_the_names_are(
    api: Api, alice: User, tmp_path: Path
) -> None:
    base = make_base("Renamed", sha256="c" * 64)
    make_base("Base")
    parameters = {
        "mode": "image-to-image", "prompt": "x", "negative_prompt": "", "num_inference_steps": 7,
        "guidance_scale": 5.0, "scheduler": "ddim", "seed": 9, "width": 64, "height": 64,
        "strength": 0.3, "loras": [], "model": {"name": "Base", "sha256": "c" * 64},
    }  # fmt: skip
    for kind in ("png", "jpeg", "webp"):
        path = tmp_path / f"a.{kind}"
        save_picture(Image.new("RGB", (8, 8)), path, parameters)
        answer = recall(api(alice), path.read_bytes()).json()
        assert (answer["source"], answer["mode"]) == ("studio", "image-to-image")
        assert answer["model"]["id"] == base.pk
        assert answer["values"]["strength"] == 0.3


def test_an_upload_answers_how_it_was_made(api: Api, alice: User, tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("parameters", TEXT)
    out = BytesIO()
    Image.new("RGB", (8, 8)).save(out, "PNG", pnginfo=info)
    for content, source in ((out.getvalue(), "a1111"), (picture("red"), None)):
        answer = api(alice).post(
            "/api/generate/uploads/",
            {"file": SimpleUploadedFile("a.png", content)},
            format="multipart",
        )
        assert answer.status_code == 201, answer.data
        recalled = answer.json()["recalled"]
        assert (recalled and recalled["source"]) == source
    assert recall(api(alice), out.getvalue()).json()["values"]["seed"] == 42


def test_values_that_no_request_takes_are_left_out(api: Api, alice: User) -> None:
    text = "x\nSteps: 999999, Sampler: Magic, CFG scale: nan, Seed: -5, Size: 100000x7, Model: y"
    answer = api(alice).post(PATH, {"text": text}).json()
    assert answer["values"] == {"prompt": "x", "negative_prompt": ""}
    assert answer["missing"] == [{"kind": "model", "name": "y"}]


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (picture("red"), 422, "nothing_recalled"),
        (b"no picture", 400, "not_a_picture"),
        (b"", 400, "not_a_picture"),
        (b"GIF89a", 400, "not_a_picture"),
    ],
)
def test_a_file_that_says_nothing_is_refused(
    api: Api, alice: User, content: bytes, status: int, code: str
) -> None:
    answer = recall(api(alice), content)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_neither_and_nonsense_are_refused(api: Api, alice: User, settings: Any) -> None:
    client = api(alice)
    assert client.post(PATH, {}, format="multipart").json()["code"] == "invalid"
    for text in ("", 3, None, "x" * 300_000):
        answer = client.post(PATH, {"text": text})
        assert (answer.status_code, list(answer.json()["errors"])) == (400, ["text"])
    out = BytesIO()
    Image.new("RGB", (64, 64)).save(out, "WEBP")
    settings.STUDIO_MAX_PIXELS = 100
    assert recall(client, out.getvalue()).json()["code"] == "not_a_picture"
    assert api().post(PATH, {"text": "x"}).status_code == 401


@pytest.mark.parametrize(
    "said", [{"loras": 5}, {"loras": [3, None]}, {"mode": []}, {"mode": {}}, {"seed": 10**400}]
)
def test_our_own_notation_may_lie_too(api: Api, alice: User, said: dict[str, Any]) -> None:
    texts = PngInfo()
    texts.add_text(STUDIO_KEY, json.dumps({"prompt": "x", **said}))
    out = BytesIO()
    Image.new("RGB", (8, 8)).save(out, "PNG", pnginfo=texts)
    answer = recall(api(alice), out.getvalue())
    assert answer.status_code == 200, answer.data
    assert answer.json()["values"] == {"prompt": "x"}
    assert (answer.json()["mode"], answer.json()["loras"]) == (None, [])


def test_a_weight_without_measure_is_not_taken(api: Api, alice: User) -> None:
    make_lora(alice, make_base(), "Ink")
    text = TEXT.replace("Ink:0.8", f"Ink:{'9' * 400}")
    answer = api(alice).post(PATH, {"text": text})
    assert answer.status_code == 200, answer.data
    assert [entry["weight"] for entry in answer.json()["loras"]] == [1.0]

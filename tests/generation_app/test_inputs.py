"""Pictures to start from: checked, private, kept once, and gone when nothing needs them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from io import BytesIO
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.utils import timezone
from PIL import Image
from rest_framework.test import APIClient

from generation_app import inputs, services
from generation_app.models import GenerationJob, InputPicture
from models_app.models import DiffusionModel
from studio_project import storage
from studio_project.models import User
from tests.factories import (
    content_of,
    make_base,
    make_dataset,
    make_generation,
    make_image,
    make_lora,
    picture,
)

Api = Callable[..., APIClient]
UPLOADS = "/api/generate/uploads/"
MODES = ("image-to-image", "inpaint", "image-to-video")


@pytest.fixture
def base(db: None) -> DiffusionModel:
    """A model that everyone may use."""
    return make_base()


def upload(client: APIClient, content: bytes, name: str = "a.png") -> Any:
    return client.post(UPLOADS, {"file": SimpleUploadedFile(name, content)}, format="multipart")


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def ask(client: APIClient, mode: str = "image-to-image", **body: Any) -> Any:
    return client.post(f"/api/generate/{mode}", {"model": "Base", "prompt": "x", **body})


def test_an_upload_is_kept_once_and_counted(api: Api, alice: User, bob: User) -> None:
    answer = upload(api(alice), picture("red", size=(40, 30)))
    assert answer.status_code == 201, answer.data
    made = answer.json()
    assert (made["width"], made["height"], made["format"]) == (40, 30, "png")
    assert upload(api(alice), picture("red", size=(40, 30))).json()["id"] == made["id"]
    assert api(alice).get(made["url"]).headers["Content-Type"] == "image/png"
    assert api(bob).get(made["url"]).status_code == 404
    assert upload(api(bob), picture("red", size=(40, 30))).json()["id"] != made["id"]
    alice.refresh_from_db()
    assert alice.stored_bytes == made["size_bytes"] == InputPicture.objects.first().size_bytes


def test_what_comes_in_is_made_plain(api: Api, alice: User) -> None:
    """CMYK, 16 bits, transparency and orientation, as for the pictures of datasets."""
    turned = Image.Exif()
    turned[0x0112] = 6
    sent = {
        "cmyk.jpg": saved(Image.new("CMYK", (40, 30), (0, 255, 255, 0)), "JPEG"),
        "deep.png": saved(Image.new("I;16", (40, 30), 40_000), "PNG"),
        "clear.png": saved(Image.new("RGBA", (40, 30), (255, 0, 0, 0)), "PNG"),
        "turned.jpg": saved(Image.new("RGB", (40, 30), "red"), "JPEG", exif=turned),
    }
    kept = {}
    for name, content in sent.items():
        answer = upload(api(alice), content, name)
        assert answer.status_code == 201, (name, answer.data)
        row = InputPicture.objects.get(pk=answer.json()["id"])
        kept[name] = Image.open(BytesIO(content_of(row.key)))
        assert kept[name].mode == "RGB", name
    assert kept["cmyk.jpg"].getpixel((5, 5))[0] > 200
    assert 150 < kept["deep.png"].getpixel((5, 5))[0] < 160
    assert kept["clear.png"].getpixel((5, 5)) == (255, 255, 255)
    assert kept["turned.jpg"].size == (30, 40)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty_file"),
        (b"no picture", "not_a_picture"),
        (saved(Image.new("RGB", (8, 8)), "GIF"), "unsupported_gif"),
        (picture("red")[:60], "truncated_picture"),
        (
            saved(
                Image.new("RGB", (8, 8)), "WEBP", save_all=True, duration=100,
                append_images=[Image.new("RGB", (8, 8), "red")],
            ),
            "animated_picture",
        ),
    ],
)  # fmt: skip
def test_a_file_that_is_not_taken_says_why(
    api: Api, alice: User, content: bytes, code: str
) -> None:
    answer = upload(api(alice), content)
    assert (answer.status_code, answer.json()["code"]) == (400, code)
    assert list(answer.json()["errors"]) == ["file"]
    assert not InputPicture.objects.exists()


def test_no_file_a_huge_one_and_no_room_are_refused(
    api: Api, alice: User, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = api(alice)
    assert client.post(UPLOADS, {}, format="multipart").json()["code"] == "invalid"
    settings.STUDIO_MAX_PIXELS = 100
    assert upload(client, picture("red")).json()["code"] == "too_many_pixels"
    settings.STUDIO_MAX_PIXELS = 10**6
    User.objects.filter(pk=alice.pk).update(max_stored_bytes=10)
    assert upload(client, picture("red")).status_code == 507
    monkeypatch.setattr(inputs, "MAX_UPLOAD_BYTES", 10)
    assert upload(client, picture("red")).status_code == 413
    assert not InputPicture.objects.exists()
    assert not list(storage._root().rglob("inputs/*/*"))  # type: ignore[union-attr]


# --- what a request names -------------------------------------------------------------------------
def test_a_picture_comes_from_an_upload_the_gallery_or_a_dataset(
    api: Api, alice: User, base: DiffusionModel
) -> None:
    client = api(alice)
    sent = upload(client, picture("red")).json()
    image = make_image(make_generation(alice, base, status="completed"))
    shown = make_dataset(alice).images.first()
    found = []
    for reference in (
        {"upload_id": sent["id"]},
        {"image_id": image.pk},
        {"dataset_image_id": shown.pk},
    ):
        answer = ask(client, image=reference, strength=0.5)
        assert answer.status_code == 202, answer.data
        job = answer.json()
        assert (job["mode"], job["strength"], job["hires_scale"]) == ("image-to-image", 0.5, None)
        found.append(job["image"]["id"])
    assert len(set(found)) == 3
    # The copy stays when the original goes.
    services.delete_image(alice, image)
    assert content_of(GenerationJob.objects.get(image_id=found[1]).image.key)


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_is_needed(api: Api, alice: User, base: DiffusionModel, mode: str) -> None:
    if mode == "image-to-video":
        DiffusionModel.objects.update(architecture="svd", category="video")
    answer = api(alice).post(f"/api/generate/{mode}", {"model": "Base"})
    assert (answer.status_code, list(answer.json()["errors"])) == (400, ["image"])


@pytest.mark.parametrize(
    "reference",
    ["x.png", 3, [1], {}, {"upload_id": "x"}, {"upload_id": True}, {"path": "/etc/passwd"},
     {"upload_id": 1, "image_id": 1}, {"upload_id": -1}, {"upload_id": 10**30}],
)  # fmt: skip
def test_what_names_no_picture_is_refused(
    api: Api, alice: User, base: DiffusionModel, reference: Any
) -> None:
    answer = ask(api(alice), init_image=reference)
    assert (answer.status_code, list(answer.json()["errors"])) == (400, ["init_image"])


@pytest.mark.parametrize("kind", ["upload_id", "image_id", "dataset_image_id"])
def test_another_users_picture_is_not_found(
    api: Api, alice: User, bob: User, base: DiffusionModel, kind: str
) -> None:
    pk = {
        "upload_id": lambda: upload(api(alice), picture("red")).json()["id"],
        "image_id": lambda: make_image(make_generation(alice, base)).pk,
        "dataset_image_id": lambda: make_dataset(alice).images.first().pk,
    }[kind]()
    for reference in ({kind: pk}, {kind: 10**9}):
        answer = ask(api(bob), image=reference)
        assert (answer.status_code, list(answer.json()["errors"])) == (404, ["image"])
    assert not GenerationJob.objects.filter(owner=bob).exists()


def test_a_shared_dataset_lends_its_pictures(
    api: Api, alice: User, bob: User, base: DiffusionModel
) -> None:
    shown = make_dataset(alice, visibility="shared").images.first()
    assert ask(api(bob), image={"dataset_image_id": shown.pk}).status_code == 202


def test_masks_are_as_large_as_the_picture_and_not_black(
    api: Api, alice: User, base: DiffusionModel
) -> None:
    client = api(alice)
    image, small, black, white = (
        {"upload_id": upload(client, picture(color, size=size)).json()["id"]}
        for color, size in (
            ("red", (64, 64)), ("white", (32, 32)), ("black", (64, 64)), ("white", (64, 64)),
        )
    )  # fmt: skip
    for mask, code in ((small, "mask_size"), (black, "mask_empty")):
        answer = ask(client, "inpaint", image=image, mask=mask)
        assert (answer.status_code, answer.json()["code"]) == (400, code)
        assert list(answer.json()["errors"]) == ["mask"]
    answer = ask(client, "inpaint", image=image, mask=white, denoising_strength=0.5)
    assert answer.status_code == 202, answer.data
    assert (answer.json()["strength"], answer.json()["mask_blur"]) == (0.5, 4)


@pytest.mark.parametrize(
    ("mode", "body", "field"),
    [
        ("image-to-image", {"strength": 2}, "strength"),
        ("image-to-image", {"denoising_strength": -1}, "denoising_strength"),
        ("image-to-image", {"strength": 0.01}, "strength"),
        ("image-to-image", {"hires_scale": 2}, "hires_scale"),
        ("image-to-image", {"width": 63}, "width"),
        ("inpaint", {"mask_blur": -1, "mask_image": {"upload_id": 0}}, "mask_image"),
        ("text-to-image", {"image": {"upload_id": 1}}, "image"),
        ("text-to-image", {"hires_scale": 40}, "hires_scale"),
        ("text-to-image", {"hires_scale": 4, "width": 2048}, "hires_scale"),
        ("text-to-image", {"hires_scale": 2, "hires_strength": 0}, "hires_strength"),
        ("text-to-image", {"strength": 0.5}, "strength"),
        ("text-to-image", {"output_format": "gif"}, "output_format"),
    ],
)
def test_a_bad_value_is_named(
    api: Api, alice: User, base: DiffusionModel, mode: str, body: dict[str, Any], field: str
) -> None:
    client = api(alice)
    given = {} if mode == "text-to-image" else {
        "image": {"upload_id": upload(client, picture("red")).json()["id"]}
    }  # fmt: skip
    answer = ask(client, mode, **{**given, **body})
    assert 400 <= answer.status_code < 500
    assert list(answer.json()["errors"]) == [field]


def test_the_size_is_the_pictures_where_the_model_is_at_home(
    api: Api, alice: User, base: DiffusionModel
) -> None:
    client = api(alice)
    for size, expected in (
        ((72, 60), (72, 56)),  # about the 64 × 64 of the model: kept, as multiples of 8
        ((640, 320), (88, 64)),  # far larger: brought to the model's size in its own shape
        ((16, 16), (64, 64)),
    ):
        image = {"upload_id": upload(client, picture("red", size=size)).json()["id"]}
        job = ask(client, image=image).json()
        assert abs(job["width"] - expected[0]) <= 8 and job["height"] == max(expected[1], 64)
        assert ask(client, image=image, width=128).json()["width"] == 128


def test_a_clip_is_upright_for_an_upright_picture(api: Api, alice: User) -> None:
    settings = {"width": 128, "height": 64, "num_frames": 5, "num_inference_steps": 3}
    make_base("Mover", architecture="svd", category="video", default_settings=settings)
    client = api(alice)
    image = {"upload_id": upload(client, picture("red", size=(40, 90))).json()["id"]}
    answer = client.post("/api/generate/image-to-video", {"model": "Mover", "image": image})
    job = answer.json()
    assert answer.status_code == 202, job
    assert (job["width"], job["height"], job["num_frames"], job["fps"]) == (64, 128, 5, 7)
    assert (job["prompt"], job["loras"], job["num_images"]) == (None, [], 1)
    for mode, model in (("image-to-image", "Mover"), ("image-to-video", make_base().name)):
        wrong = client.post(f"/api/generate/{mode}", {"model": model, "image": image})
        assert list(wrong.json()["errors"]) == ["model"], mode


# --- cleaning up ----------------------------------------------------------------------------------
def test_what_no_request_needs_goes_after_a_day(
    api: Api, alice: User, base: DiffusionModel
) -> None:
    client = api(alice)
    used, unused, fresh = (
        upload(client, picture(color)).json()["id"] for color in ("red", "green", "blue")
    )
    job = ask(client, image={"upload_id": used}).json()
    old = timezone.now() - timedelta(hours=25)
    InputPicture.objects.exclude(pk=fresh).update(used_at=old)
    key = InputPicture.objects.get(pk=unused).key
    assert inputs.remove_unused() == 1
    assert not storage.exists(key)
    assert set(InputPicture.objects.values_list("pk", flat=True)) == {used, fresh}
    row = GenerationJob.objects.get(pk=job["id"])
    services.cancel_generation(alice, row)
    services.delete_generation(alice, GenerationJob.objects.get(pk=row.pk))
    assert inputs.remove_unused() == 1
    alice.refresh_from_db()
    assert alice.stored_bytes == InputPicture.objects.get().size_bytes


# --- words ----------------------------------------------------------------------------------------
def test_variations_are_pictures_of_one_job(api: Api, alice: User, base: DiffusionModel) -> None:
    User.objects.filter(pk=alice.pk).update(max_images_per_request=8)
    job = ask(api(alice), "text-to-image", prompt="a {red|blue} fox", num_images=3, seed=5).json()
    assert (job["num_images"], job["prompt"]) == (4, "a {red|blue} fox")
    values = GenerationJob.objects.get().parameters
    assert values["prompts"] == ["a red fox", "a blue fox"] * 2
    assert values["seeds"] == [5, 6, 7, 8]
    for prompt in ("{a|b}" * 4, "{a|b}" * 64):
        answer = ask(api(alice), "text-to-image", prompt=prompt)
        assert (answer.status_code, answer.json()["code"]) == (400, "too_many_variations")
    for prompt in ("((((", "{a|", "🦊", ""):
        assert ask(api(alice), "text-to-image", prompt=prompt).status_code == 202
    answer = ask(api(alice), "text-to-image", prompt="x" * 20_000)
    assert list(answer.json()["errors"]) == ["prompt"]


def test_a_lora_in_the_prompt_becomes_one_of_the_loras(
    api: Api, alice: User, bob: User, base: DiffusionModel
) -> None:
    make_lora(alice, base, "Ink"), make_lora(alice, base, "Fox")
    body = {"prompt": "a fox <lora:Ink:0.8>", "loras": [{"model": "Fox", "weight": 0.5}]}
    job = ask(api(alice), "text-to-image", **body).json()
    assert job["prompt"] == "a fox"
    assert {lora["name"]: lora["weight"] for lora in job["loras"]} == {"Fox": 0.5, "Ink": 0.8}
    for prompt, status in (("<lora:Ink:9>", 400), ("<lora:Ink:x>", 400), ("<lora:Gone>", 404)):
        answer = ask(api(alice), "text-to-image", prompt=prompt)
        assert (answer.status_code, list(answer.json()["errors"])) == (status, ["loras"])
    assert ask(api(bob), "text-to-image", prompt="<lora:Ink>").status_code == 404


def test_an_estimate_knows_the_mode(api: Api, alice: User, base: DiffusionModel) -> None:
    client = api(alice)
    image = {"upload_id": upload(client, picture("red")).json()["id"]}
    body = {"model": "Base", "num_inference_steps": 10}
    answer = client.post(
        "/api/generate/estimate",
        {**body, "mode": "image-to-image", "image": image, "strength": 0.5},
    )
    assert answer.json()["total_steps"] == 5, answer.data
    answer = client.post(
        "/api/generate/estimate", {**body, "hires_scale": 2, "hires_strength": 0.5}
    )
    assert answer.json()["total_steps"] == 15
    assert client.post("/api/generate/estimate", {**body, "mode": "x"}).status_code == 404


def test_an_estimate_looks_at_measures_alone(
    api: Api, alice: User, bob: User, base: DiffusionModel
) -> None:
    dataset = make_dataset(alice, captions=("a fox",))
    image = {"dataset_image_id": dataset.images.get().pk}
    body = {"model": "Base", "mode": "inpaint", "num_inference_steps": 10, "image": image}
    path = "/api/generate/estimate"
    assert api(alice).post(path, {**body, "strength": 0.5}).json()["total_steps"] == 5
    assert not InputPicture.objects.exists()
    for refused in (api(bob).post(path, body), api(alice).post(path, {**body, "image": None})):
        assert list(refused.json()["errors"]) == ["image"]


def test_a_base_for_inpainting_asks_for_a_mask(api: Api, alice: User, base: DiffusionModel) -> None:
    client = api(alice)
    painter, lora = make_base("Painter", is_inpainting=True), make_lora(alice, base)
    image = {"upload_id": upload(client, picture("red")).json()["id"]}
    mask = {"upload_id": upload(client, picture("white")).json()["id"]}
    for mode in ("text-to-image", *MODES):
        started = {} if mode == "text-to-image" else {"image": image}
        started |= {"mask_image": mask} if mode == "inpaint" else {}
        answer = ask(client, mode, **started, model=painter.pk, loras=[{"model": lora.pk}])
        if mode == "inpaint":
            assert (answer.status_code, answer.json()["loras"][0]["name"]) == (202, "Fox")
            continue
        problem = answer.json()
        assert (answer.status_code, problem["code"]) == (400, "model_incompatible")
        [told] = problem["errors"]["model"]
        assert "the mode “inpaint” with a picture and its mask" in told["message"]
    modes = client.get("/api/options/").json()["modes"]
    assert [name for name, mode in modes.items() if mode["takes_inpainting_models"]] == ["inpaint"]
    assert modes["inpaint"]["inputs"] == ["image", "mask_image"]

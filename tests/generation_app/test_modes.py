"""Every mode on a worker with a real engine: from the API's request to the stored file."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image, ImageDraw

from generation_app import actors, comparing, remaking, services
from generation_app.models import GeneratedImage, GenerationJob, InputPicture
from models_app.models import DiffusionModel
from studio_project import storage
from studio_project.api import Problem
from studio_project.models import User, Worker
from tests.factories import (
    content_of,
    make_base,
    make_base_of,
    make_generation,
    make_image,
)
from tests.tiny import make_tiny_sd, make_tiny_svd

Status = GenerationJob.Status
QUICK = {"prompt": "a fox", "width": 64, "height": 64, "num_inference_steps": 4, "seed": 5}


def keep(user: User, image: Image.Image) -> InputPicture:
    """Store an input picture as an upload would."""
    out = BytesIO()
    image.save(out, "PNG")
    key = storage.new_key("inputs", user.pk, suffix=".png")
    return InputPicture.objects.create(
        owner=user,
        key=key,
        width=image.width,
        height=image.height,
        size_bytes=storage.save(key, out.getvalue()),
        format="png",
        pixel_sha256=key[-64:],
    )


@pytest.fixture
def picture(alice: User) -> InputPicture:
    image = Image.new("RGB", (64, 64), "teal")
    ImageDraw.Draw(image).ellipse((10, 10, 50, 50), fill="orange")
    return keep(alice, image)


@pytest.fixture
def mask(alice: User) -> InputPicture:
    image = Image.new("RGB", (64, 64), "black")
    ImageDraw.Draw(image).rectangle((16, 16, 40, 40), fill="white")
    return keep(alice, image)


def submit(user: User, mode: str, model: DiffusionModel, **body: Any) -> GenerationJob:
    body = {"model": model.pk, **QUICK, **body}
    return services.submit_generation(user, mode=mode, body=body)


def done(job: GenerationJob) -> GenerationJob:
    actors.generate()
    job.refresh_from_db()
    assert job.status == Status.COMPLETED, (job.error_code, job.log_tail)
    return job


def opened(image: GeneratedImage) -> Image.Image:
    return Image.open(BytesIO(content_of(image.key)))


def test_pictures_from_a_picture_and_into_a_hole(
    worker: Worker, tiny_base: DiffusionModel, alice: User, picture: InputPicture,
    mask: InputPicture, tmp_path: Path,
) -> None:  # fmt: skip
    image, hole = {"upload_id": picture.pk}, {"upload_id": mask.pk}
    folder = make_tiny_sd(tmp_path / "nine", in_channels=9)
    painter = make_base_of(folder, "Painter", is_inpainting=True)
    over = submit(alice, "image-to-image", tiny_base, image=image, strength=0.5, num_images=2)
    into = submit(alice, "inpaint", tiny_base, image=image, mask_image=hole, mask_blur=0)
    made_for_it = submit(
        alice, "inpaint", painter, image=image, mask_image=hole, mask_blur=0, num_images=2
    )
    assert (over.total_steps, into.total_steps, made_for_it.total_steps) == (4, 3, 6)
    assert made_for_it.joint_key == ""
    done(into)
    done(made_for_it)
    assert (made_for_it.step, made_for_it.images.count()) == (6, 2)
    over.refresh_from_db()
    assert (over.status, over.step, over.total_steps) == (Status.COMPLETED, 4, 4)
    assert [made.parameters["strength"] for made in over.images.all()] == [0.5, 0.5]
    before = Image.open(BytesIO(content_of(picture.key)))
    for made in (into.images.get(), *made_for_it.images.all()):
        after = opened(made)
        assert after.crop((0, 42, 64, 64)).tobytes() == before.crop((0, 42, 64, 64)).tobytes()
        assert after.tobytes() != before.tobytes()


def test_a_hires_pass_variations_and_formats(
    worker: Worker, tiny_base: DiffusionModel, alice: User
) -> None:
    body = {"hires_scale": 2, "hires_strength": 0.5, "output_format": "webp"}
    job = done(submit(alice, "text-to-image", tiny_base, **{**body, "prompt": "a {red|blue} fox"}))
    red, blue = job.images.order_by("index")
    assert (red.width, red.height, red.media_type) == (128, 128, "image/webp")
    assert opened(red).size == (128, 128)
    assert [made.parameters["prompt"] for made in (red, blue)] == ["a red fox", "a blue fox"]
    assert job.step == job.total_steps == 12
    jpeg = done(submit(alice, "text-to-image", tiny_base, output_format="jpg")).images.get()
    assert (opened(jpeg).format, jpeg.media_type) == ("JPEG", "image/jpeg")


def test_a_clip_has_a_film_an_animation_and_a_still(
    worker: Worker, alice: User, picture: InputPicture, tmp_path: Path, api: Any,
    django_capture_on_commit_callbacks: Any,
) -> None:  # fmt: skip
    model = make_base_of(
        make_tiny_svd(tmp_path / "svd"), "Mover", architecture="svd", category="video"
    )
    body = {
        "model": model.pk, "image": {"upload_id": picture.pk}, "width": 64, "height": 64,
        "num_inference_steps": 2, "num_frames": 3, "fps": 5, "seed": 1,
    }  # fmt: skip
    job = done(services.submit_generation(alice, mode="image-to-video", body=body))
    image = job.images.get()
    assert (image.is_video, image.media_type, image.seed) == (True, "video/mp4", 1)
    with av.open(BytesIO(content_of(image.key))) as film:
        assert len(list(film.decode(video=0))) == 3
    client = api(alice)
    (shown,) = client.get(f"/api/generate/{job.pk}").json()["images"]
    assert client.get(shown["url"]).headers["Content-Type"] == "video/mp4"
    part = client.get(shown["url"], headers={"Range": "bytes=0-3"})
    assert (part.status_code, part.headers["Content-Length"]) == (206, "4")
    moving = client.get(shown["animation_url"])
    assert Image.open(BytesIO(b"".join(moving))).n_frames == 3
    assert Image.open(BytesIO(content_of(image.thumbnail_key))).size == (64, 64)
    sizes = len(content_of(image.key)) + len(content_of(image.animation_key))
    assert image.size_bytes == sizes
    again = done(remaking.make_again(alice, image)).images.get()
    assert again.difference == {"max": 0, "mean": 0.0, "share": 0.0}
    with django_capture_on_commit_callbacks(execute=True):
        services.delete_image(alice, image)
    assert not any(storage.exists(key) for key in image.keys)


@pytest.mark.parametrize("run_alone", [True, False])
def test_each_picture_of_a_request_is_made_again_alone_and_compared(
    worker: Worker, tiny_base: DiffusionModel, alice: User, api: Any, run_alone: bool
) -> None:
    body = {"prompt": "a {red|blue} fox", "run_alone": run_alone}
    job = done(submit(alice, "text-to-image", tiny_base, **body))
    blue = job.images.get(index=1)
    answer = api(alice).post(f"/api/images/{blue.pk}/make-again")
    assert (answer.status_code, answer.json()["remake_of_id"]) == (202, blue.pk)
    assert (answer.json()["seed"], answer.json()["num_images"]) == (6, 1)
    again = done(GenerationJob.objects.get(pk=answer.json()["id"])).images.get()
    assert again.difference is not None
    if run_alone:
        assert again.difference == {"max": 0, "mean": 0.0, "share": 0.0}
        assert opened(again).tobytes() == opened(blue).tobytes()
    else:  # what shares a batch is promised to this much (DESIGN §13)
        assert again.difference["max"] <= 2
        assert again.difference["mean"] <= 0.1
    assert blue.difference is None


def test_a_picture_is_made_again_from_the_picture_it_started_from(
    worker: Worker, tiny_base: DiffusionModel, alice: User, picture: InputPicture
) -> None:
    body = {"image": {"upload_id": picture.pk}, "scheduler": "euler_a", "num_images": 2}
    image = done(submit(alice, "image-to-image", tiny_base, **body)).images.get(index=1)
    again = done(remaking.make_again(alice, image))
    assert again.image == picture
    assert again.images.get().difference == {"max": 0, "mean": 0.0, "share": 0.0}


def test_a_picture_whose_model_went_cannot_be_made_again(alice: User) -> None:
    base = make_base()
    image = make_image(make_generation(alice, base, status=Status.COMPLETED))
    DiffusionModel.objects.filter(pk=base.pk).update(is_active=False)
    with pytest.raises(Problem) as caught:
        remaking.make_again(alice, image)
    assert (caught.value.code, caught.value.status) == ("model_unavailable", 409)


def test_differences_are_measured(alice: User, tmp_path: Path) -> None:
    image = make_image(make_generation(alice))
    other = Image.open(BytesIO(content_of(image.key))).convert("RGB")
    other.putpixel((0, 0), (255, 165, 10))
    other.save(tmp_path / "other.png")
    found = comparing.compare(image, tmp_path / "other.png")
    assert found is not None
    assert (found["max"], round(found["share"] * 64 * 64 * 3)) == (10, 1)
    other.resize((32, 32)).save(tmp_path / "small.png")
    assert comparing.compare(image, tmp_path / "small.png") == {
        "sizes": ["64 × 64 × 1", "32 × 32 × 1"]
    }
    (tmp_path / "broken.png").write_text("x")
    assert comparing.compare(image, tmp_path / "broken.png") is None


def test_a_job_that_goes_on_keeps_its_prompts(
    worker: Worker, tiny_base: DiffusionModel, alice: User
) -> None:
    job = submit(alice, "text-to-image", tiny_base, prompt="a {red|blue} fox")
    first = make_image(job, 0)
    done(job)
    made = job.images.exclude(pk=first.pk).get()
    assert (made.index, made.parameters["prompt"], made.seed) == (1, "a blue fox", 6)

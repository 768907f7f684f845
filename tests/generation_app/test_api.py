"""/api/generate/ and /api/images/: shapes, refusals as problem+json, and nothing for strangers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from generation_app.models import GenerationJob
from models_app.models import DiffusionModel
from studio_project import events
from studio_project.models import User
from tests.factories import make_base, make_generation, make_image, make_lora

Api = Callable[..., APIClient]
TEXT_TO_IMAGE = "/api/generate/text-to-image"


@pytest.fixture
def base(db: None) -> DiffusionModel:
    """A model that everyone may use."""
    return make_base()


def test_a_request_is_answered_with_every_resolved_value(
    api: Api, alice: User, base: DiffusionModel
) -> None:
    answer = api(alice).post(TEXT_TO_IMAGE, {"model": "Base", "prompt": "a fox", "steps": 5})
    assert answer.status_code == 202, answer.data
    job = answer.json()
    assert answer.headers["Location"].endswith(f"/api/generate/{job['id']}")
    assert job["model"] == {"id": base.pk, "name": "Base", "title": "Base"}
    assert (job["status"], job["position"], job["waiting_reason"]) == ("queued", 1, "no_worker")
    assert (job["prompt"], job["num_inference_steps"], job["width"]) == ("a fox", 5, 64)
    assert 0 <= job["seed"] < 2**32
    assert (job["images"], job["error"], job["progress"]) == ([], None, 0.0)
    assert api(alice).get(answer.headers["Location"]).json()["seed"] == job["seed"]


def test_a_request_may_ask_to_run_alone(api: Api, alice: User, base: DiffusionModel) -> None:
    client, body = api(alice), {"model": "Base", "prompt": "a fox"}
    assert client.post(TEXT_TO_IMAGE, body).json()["run_alone"] is False
    assert client.post(TEXT_TO_IMAGE, {**body, "run_alone": True}).json()["run_alone"] is True
    refused = client.post(TEXT_TO_IMAGE, {**body, "run_alone": 1})
    assert (refused.status_code, list(refused.json()["errors"])) == (400, ["run_alone"])


def test_both_spellings_of_a_path_answer(api: Api, alice: User, base: DiffusionModel) -> None:
    body = {"model": base.pk, "prompt": "x"}
    job = api(alice).post(f"{TEXT_TO_IMAGE}/", body).json()
    for path in (f"/api/generate/{job['id']}", f"/api/generate/{job['id']}/", "/api/images"):
        assert api(alice).get(path).status_code == 200


def test_waiting_is_honoured(api: Api, alice: User, base: DiffusionModel) -> None:
    client, body = api(alice), {"model": base.pk}
    waited = client.post(TEXT_TO_IMAGE, body, HTTP_PREFER="wait=0")
    assert waited.status_code == 202
    waited = client.post(TEXT_TO_IMAGE, body, HTTP_PREFER="wait=1")
    assert (waited.status_code, waited.headers["Preference-Applied"]) == (202, "wait=1")
    for odd in ("wait=²", f"wait={'9' * 5000}", "wait="):
        assert client.post(TEXT_TO_IMAGE, body, HTTP_PREFER=odd).status_code == 202


def test_a_repeated_request_paints_once(api: Api, alice: User, base: DiffusionModel) -> None:
    client, body, key = api(alice), {"model": base.pk}, {"HTTP_IDEMPOTENCY_KEY": "k"}
    ids = {client.post(TEXT_TO_IMAGE, body, **key).json()["id"] for _ in range(2)}
    assert len(ids) == GenerationJob.objects.count() == 1
    assert client.post(TEXT_TO_IMAGE, {"model": "Base"}, **key).json()["code"] == (
        "idempotency_conflict"
    )


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({}, 400, "model"),
        ({"model": "Nothing"}, 404, "model"),
        ({"model": "Base", "colour": 1}, 400, "colour"),
        ({"model": "Base", "width": "wide"}, 400, "width"),
        ({"model": "Base", "prompt": "x" * 10_000}, 400, "prompt"),
        ({"model": "Base", "loras": ["Fox"]}, 400, "loras"),
    ],
)
def test_a_bad_request_names_the_field(
    api: Api, alice: User, base: DiffusionModel, body: Any, status: int, field: str
) -> None:
    answer = api(alice).post(TEXT_TO_IMAGE, body)
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert list(answer.json()["errors"]) == [field]
    assert not GenerationJob.objects.exists()


def test_an_estimate_makes_nothing(api: Api, alice: User, base: DiffusionModel) -> None:
    client, path = api(alice), "/api/generate/estimate"
    body = {"model": "Base", "num_images": 2, "num_inference_steps": 8}
    assert client.post(path, body).json() == {
        "total_steps": 16, "num_images": 2, "seconds": None, "load_seconds": None, "basis": None,
        "position": 1, "eta_seconds": None,
    }  # fmt: skip
    metrics = {"seconds": 3.0, "load_seconds": 1.0, "denoise_seconds": 2.0}
    now = timezone.now()
    make_generation(
        alice,
        base,
        status="completed",
        metrics=metrics,
        started_at=now - timedelta(seconds=2),
        finished_at=now,
    )
    assert client.post(path, body).json()["seconds"] == 8.0
    assert client.post(path, {"model": "Nothing"}).status_code == 404
    assert GenerationJob.objects.count() == 1


@pytest.mark.parametrize("mode", ["text-to-image", "inpaint", "estimate", "recall"])
@pytest.mark.parametrize("body", ["[1]", '["text"]', "3", '"text"'])
def test_a_body_that_is_no_object_is_refused(
    api: Api, alice: User, base: DiffusionModel, mode: str, body: str
) -> None:
    path = f"/api/generate/{mode}"
    answer = api(alice).post(path, body, content_type="application/json")
    assert (answer.status_code, answer.json()["code"]) == (400, "parse_error")


def test_nan_is_refused(api: Api, alice: User, base: DiffusionModel) -> None:
    body = b'{"model": "Base", "guidance_scale": NaN}'
    answer = api(alice).post(TEXT_TO_IMAGE, body, content_type="application/json")
    assert answer.status_code == 400


def test_finished_pictures_have_links_that_open(
    api: Api, alice: User, base: DiffusionModel
) -> None:
    job = make_generation(alice, base, status="completed")
    image = make_image(job)
    client = api(alice)
    (shown,) = client.get(f"/api/generate/{job.pk}").json()["images"]
    assert (shown["id"], shown["seed"], shown["width"], shown["height"]) == (image.pk, 7, 64, 64)
    assert client.get(shown["url"]).headers["Content-Type"] == "image/png"
    assert client.get(shown["thumbnail_url"]).headers["Content-Type"] == "image/webp"
    saved = client.get(shown["url"] + "?download=1")
    assert saved.headers["Content-Disposition"].startswith("attachment")
    detail = client.get(f"/api/images/{image.pk}").json()
    assert (detail["prompt"], detail["model"]["name"]) == ("a fox", "Base")
    assert client.delete(f"/api/images/{image.pk}").status_code == 204
    assert client.get(shown["url"]).status_code == 404
    assert client.get(f"/api/generate/{job.pk}").json()["images"] == []


def test_pictures_keep_the_name_of_a_model_that_went(
    api: Api, alice: User, base: DiffusionModel
) -> None:
    lora = make_lora(alice, base)
    image = make_image(make_generation(alice, lora, status="completed", model_name="Fox"))
    DiffusionModel.objects.filter(pk=lora.pk).update(deleted_at=image.created_at)
    assert api(alice).get(f"/api/images/{image.pk}").json()["model"]["name"] == "Fox"


def test_lists_filter_and_page(api: Api, alice: User, bob: User, base: DiffusionModel) -> None:
    jobs = [make_generation(alice, base, status="completed") for _ in range(3)]
    for job in jobs:
        make_image(job)
    make_image(make_generation(bob, base, status="completed"))
    client = api(alice)
    assert len(client.get("/api/generate/?status=completed").json()["results"]) == 3
    assert client.get("/api/generate/?status=failed").json()["results"] == []
    page = client.get("/api/images/?limit=2&search=fox").json()
    assert len(page["results"]) == 2
    assert len(client.get(page["next"]).json()["results"]) == 1
    assert len(client.get(f"/api/images/?job={jobs[0].pk}").json()["results"]) == 1
    assert client.get("/api/images/?search=owl").json()["results"] == []


def test_lists_cost_the_same_queries_however_long(
    api: Api, alice: User, base: DiffusionModel, django_assert_max_num_queries: Any
) -> None:
    for _ in range(20):
        make_image(make_generation(alice, base, status="queued"))
    client = api(alice)
    for path in ("/api/generate/", "/api/images/"):
        with django_assert_max_num_queries(12):
            assert len(client.get(path).json()["results"]) == 20


def test_the_preview_is_private_and_never_stored(
    api: Api, alice: User, bob: User, base: DiffusionModel
) -> None:
    job = make_generation(alice, base, status="running")
    path = f"/api/generate/{job.pk}/preview"
    assert api(alice).get(path).status_code == 404
    events.put_preview(job.pk, b"jpeg")
    answer = api(alice).get(path)
    assert (answer.content, answer.headers["Cache-Control"]) == (b"jpeg", "no-store")
    assert api(bob).get(path).status_code == 404


def test_cancelling_a_final_job_answers_with_its_state(
    api: Api, alice: User, base: DiffusionModel
) -> None:
    job = make_generation(alice, base, status="completed")
    answer = api(alice).post(f"/api/generate/{job.pk}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "completed")


def test_strangers_and_visitors_see_nothing(
    api: Api, alice: User, bob: User, base: DiffusionModel
) -> None:
    image = make_image(make_generation(alice, base, status="completed"))
    paths = [
        f"/api/generate/{image.job_id}",
        f"/api/generate/{image.job_id}/preview",
        f"/api/images/{image.pk}",
        f"/api/images/{image.pk}/file",
        f"/api/images/{image.pk}/thumbnail",
    ]
    for path in paths:
        assert api(bob).get(path).status_code == 404, path
        assert api().get(path).status_code == 401, path
    assert api(bob).post(f"/api/generate/{image.job_id}/cancel").status_code == 404
    for path in (paths[0], paths[2]):
        assert api(bob).delete(path).status_code == 404
    for path in ("/api/images/", "/api/generate/"):
        assert api(bob).get(path).json()["results"] == []

"""`/v1/`: what OpenAI's clients send and expect."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image
from rest_framework.test import APIClient

from generation_app.models import GenerationJob
from models_app.models import DiffusionModel
from studio_project.models import User, Visibility
from tests.factories import make_base, make_lora

Client = Callable[[User], APIClient]
Ended = Callable[..., list[GenerationJob]]
GENERATIONS = "/v1/images/generations"


def paint(client: APIClient, status: int = 200, **body: Any) -> Any:
    answer = client.post(GENERATIONS, {"prompt": "a fox", **body})
    assert answer.status_code == status, answer.content
    assert answer["Content-Type"] == "application/json"
    return answer.json()


def test_pictures_come_as_base64(
    bearer: Client, alice: User, base: DiffusionModel, ended: Ended
) -> None:
    (waited,) = [ended()]
    answer = paint(bearer(alice), model="Base", n=2, size="128x64", response_format="b64_json")
    assert [set(entry) for entry in answer["data"]] == [{"b64_json"}] * 2
    picture = Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"])))
    assert picture.format == "PNG"
    (job,) = waited
    assert (job.owner, job.base_model) == (alice, base)
    values = job.parameters
    assert (values["width"], values["height"], values["num_images"]) == (128, 64, 2)
    assert (answer["job_id"], answer["ignored_fields"]) == (str(job.pk), [])
    assert answer["created"] == int(job.created_at.timestamp())


def test_a_url_opens_with_the_same_token_only(
    bearer: Client, alice: User, bob: User, base: DiffusionModel, ended: Ended
) -> None:
    ended()
    mine = bearer(alice)
    (entry,) = paint(mine, model="Base", response_format="url")["data"]
    assert set(entry) == {"url"}
    assert mine.get(entry["url"])["Content-Type"] == "image/png"
    assert bearer(bob).get(entry["url"]).status_code == 404
    assert APIClient().get(entry["url"]).status_code == 401


def test_without_a_format_both_are_there(
    bearer: Client, alice: User, base: DiffusionModel, ended: Ended
) -> None:
    ended()
    (entry,) = paint(bearer(alice), model="Base")["data"]
    assert set(entry) == {"url", "b64_json"}


def test_unknown_fields_are_ignored_and_listed(
    bearer: Client, alice: User, base: DiffusionModel, ended: Ended
) -> None:
    (waited,) = [ended()]
    answer = paint(
        bearer(alice),
        model="Base",
        quality="hd",
        style=None,
        background="opaque",
        user="u",
        size="auto",
        seed=5,
        run_alone=True,
    )
    assert answer["ignored_fields"] == ["background", "quality"]
    values = waited[0].parameters
    assert (values["seed"], values["width"]) == (5, 64)  # our own field; the model's own size
    assert values["run_alone"] is True


def test_without_a_model_the_largest_ready_base_paints(
    bearer: Client, alice: User, base: DiffusionModel, ended: Ended
) -> None:
    (waited,) = [ended()]
    large = make_base("Large", size_bytes=10**9)
    make_base("Larger", size_bytes=10**10, is_active=False)
    make_base("Film", size_bytes=10**11, architecture="svd", category="video")
    make_base("Painter", size_bytes=10**11, is_inpainting=True)
    client = bearer(alice)
    paint(client)
    assert waited[0].model == large
    assert {row["id"] for row in client.get("/v1/models").json()["data"]} == {"Base", "Large"}


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({"prompt": None}, 400, "prompt", "invalid"),
        ({"size": "63x64"}, 400, "size", "invalid"),
        ({"size": "wide"}, 400, "size", "invalid"),
        ({"n": 0}, 400, "n", "invalid"),
        ({"n": 1000}, 400, "n", "invalid"),
        ({"response_format": "gif"}, 400, "response_format", "invalid"),
        ({"user": 7}, 400, "user", "invalid"),
        ({"stream": True}, 400, "stream", "invalid"),
        ({"model": "dall-e-3"}, 404, "model", "model_not_found"),
    ],
)
def test_refusals_have_openais_shape(
    bearer: Client,
    alice: User,
    base: DiffusionModel,
    body: dict[str, Any],
    status: int,
    param: str,
    code: str,
) -> None:
    error = paint(bearer(alice), status, **{"model": "Base", **body})["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert not GenerationJob.objects.exists()


def test_who_is_nobody_is_refused(base: DiffusionModel) -> None:
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION="Bearer sk-not-ours")
    error = paint(client, 401, model="Base")["error"]
    assert (error["type"], error["code"]) == ("authentication_error", "token_invalid")


def test_caps_hold(bearer: Client, alice: User, base: DiffusionModel, ended: Ended) -> None:
    ended("queued")
    User.objects.update(max_active_jobs=1)
    client = bearer(alice)
    late = client.post(GENERATIONS, {"prompt": "x"})
    assert (late.status_code, late.json()["error"]["code"]) == (504, "still_running")
    error = paint(client, 429)["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "active_jobs_limit")
    assert GenerationJob.objects.get().status == "queued"  # going on without the client


def test_a_failed_job_is_not_asked_for_again_by_the_package(
    bearer: Client, alice: User, base: DiffusionModel, ended: Ended
) -> None:
    ended("failed", images=0, error_code="out_of_memory")
    answer = bearer(alice).post(GENERATIONS, {"prompt": "x"})
    assert (answer.status_code, answer["x-should-retry"]) == (500, "false")
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "out_of_memory")


def test_a_repeated_key_paints_once(
    bearer: Client, alice: User, bob: User, base: DiffusionModel, ended: Ended
) -> None:
    (waited,) = [ended()]
    for user, expected in ((alice, 1), (alice, 1), (bob, 2)):
        answer = bearer(user).post(GENERATIONS, {"prompt": "x"}, HTTP_IDEMPOTENCY_KEY="k")
        assert (answer.status_code, len(waited)) == (200, expected)
    other = bearer(alice).post(GENERATIONS, {"prompt": "y"}, HTTP_IDEMPOTENCY_KEY="k")
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")


def test_models_are_those_one_may_use(
    bearer: Client, alice: User, bob: User, base: DiffusionModel
) -> None:
    mine = make_lora(alice, base, "Fox")
    shared = make_lora(bob, base, "Fox", visibility=Visibility.SHARED)
    make_base("Film", architecture="svd", category="video")

    def listed(user: User) -> dict[str, str]:
        answer = bearer(user).get("/v1/models").json()
        assert answer["object"] == "list"
        return {entry["id"]: entry["owned_by"] for entry in answer["data"]}

    # One's own comes first under its name; the other of that name goes by its id.
    assert listed(alice) == {"Fox": "alice", str(shared.pk): "bob", "Base": "studio"}
    assert listed(bob) == {"Fox": "bob", "Base": "studio"}
    assert bearer(alice).get("/v1/models/Fox").json()["owned_by"] == "alice"
    assert bearer(bob).get(f"/v1/models/{mine.pk}").status_code == 404


def test_what_is_not_there_says_so(bearer: Client, alice: User) -> None:
    answer = bearer(alice).post("/v1/chat/completions", {})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    answer = bearer(alice).post(GENERATIONS, {"prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "model_unavailable")

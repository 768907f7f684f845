"""`/sdapi/v1/`: what AUTOMATIC1111's clients send and expect."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image
from rest_framework.test import APIClient

from generation_app.models import GenerationJob
from models_app.models import DiffusionModel
from studio_project import events, storage
from studio_project.models import ApiToken, User
from tests.factories import make_base, make_generation, make_lora, picture

Client = Callable[[User], APIClient]
Ended = Callable[..., list[GenerationJob]]
TXT2IMG = "/sdapi/v1/txt2img"


def paint(client: APIClient, status: int = 200, **body: Any) -> Any:
    answer = client.post(TXT2IMG, {"prompt": "a fox", **body})
    assert answer.status_code == status, answer.content
    assert answer["Content-Type"] == "application/json"
    return answer.json()


def test_a_picture_comes_with_its_parameters(
    bearer: Client, alice: User, base: DiffusionModel, ended: Ended
) -> None:
    waited = ended()
    answer = paint(
        bearer(alice), steps=5, cfg_scale=3.5, width=128, seed=9, sampler_name="Euler a", n_iter=2
    )
    assert [_open(text).format for text in answer["images"]] == ["PNG", "PNG"]
    values = waited[0].parameters
    assert (values["num_inference_steps"], values["guidance_scale"]) == (5, 3.5)
    assert (values["scheduler"], values["seed"]) == ("euler_a", 9)
    info = json.loads(answer["info"])
    assert (info["steps"], info["sampler_name"], info["seed"]) == (5, "Euler a", 9)
    assert len(info["all_seeds"]) == len(info["infotexts"]) == 2
    assert (info["sd_model_name"], info["sd_model_hash"]) == ("Base", "b" * 10)
    assert (info["job_id"], info["ignored_fields"]) == (str(waited[0].pk), [])
    assert answer["parameters"]["width"] == 128


def _open(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_unknown_fields_are_ignored_and_listed(
    bearer: Client, alice: User, base: DiffusionModel, ended: Ended
) -> None:
    ended()
    answer = paint(
        bearer(alice),
        restore_faces=True,
        subseed=None,
        alwayson_scripts={},
        override_settings={"eta_noise_seed_delta": 1, "CLIP_stop_at_last_layers": 2},
        send_images=False,
    )
    info = json.loads(answer["info"])
    assert info["ignored_fields"] == [
        "alwayson_scripts",
        "override_settings.eta_noise_seed_delta",
        "restore_faces",
    ]
    assert info["clip_skip"] == 2
    assert answer["images"] == []


@pytest.mark.parametrize(
    ("counts", "number"),
    [({}, 1), ({"batch_size": 3}, 3), ({"batch_size": 2, "n_iter": 2}, 4), ({"n_iter": 2}, 2)],
)
def test_the_number_of_pictures_is_a_product(
    bearer: Client,
    alice: User,
    base: DiffusionModel,
    ended: Ended,
    counts: dict[str, int],
    number: int,
) -> None:
    ended()
    assert len(paint(bearer(alice), **counts)["images"]) == number


@pytest.mark.parametrize(
    ("sampling", "scheduler"),
    [
        ({"sampler_name": "DPM++ 2M", "scheduler": "Karras"}, "dpmpp_2m_karras"),
        ({"sampler_name": "DPM++ 2M", "scheduler": "automatic"}, "dpmpp_2m"),
        ({"sampler_name": "", "sampler_index": "Euler"}, "euler"),
        ({"sampler_name": "DDIM", "sampler_index": "Euler a"}, "ddim"),
        ({"scheduler": "Automatic"}, "heun"),
    ],
)
def test_samplers_are_mapped(
    bearer: Client, alice: User, ended: Ended, sampling: dict[str, str], scheduler: str
) -> None:
    make_base(default_settings={"scheduler": "heun", "width": 64, "height": 64})
    waited = ended()
    paint(bearer(alice), **sampling)
    assert waited[0].parameters["scheduler"] == scheduler


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"steps": 10_000}, 422, "steps"),
        ({"cfg_scale": "much"}, 422, "cfg_scale"),
        ({"width": 63}, 422, "width"),
        ({"batch_size": -1, "n_iter": -1}, 422, "batch_size"),
        ({"n_iter": 1000}, 422, "batch_size"),
        ({"sampler_name": "Best"}, 422, "sampler_name"),
        ({"sampler_name": "Euler", "scheduler": "polyexponential"}, 422, "sampler_name"),
        ({"override_settings": []}, 422, "override_settings"),
        ({"override_settings": {"sd_model_checkpoint": 7.5}}, 422, "sd_model_checkpoint"),
        ({"override_settings": {"sd_model_checkpoint": "None"}}, 404, ""),
        ({"override_settings": {"sd_model_checkpoint": "Base [0123456789]"}}, 404, ""),
    ],
)
def test_refusals_have_a1111s_shape(
    bearer: Client,
    alice: User,
    base: DiffusionModel,
    body: dict[str, Any],
    status: int,
    field: str,
) -> None:
    answer = paint(bearer(alice), status, **body)
    assert set(answer) == {"error", "detail", "body", "errors"}
    assert answer["errors"]
    if field:
        assert [entry["loc"] for entry in answer["detail"]] == [["body", field]]
    assert not GenerationJob.objects.exists()


def test_the_settings_choose_the_model(
    bearer: Client, alice: User, bob: User, base: DiffusionModel, ended: Ended
) -> None:
    waited = ended()
    fox = make_lora(alice, base)
    client = bearer(alice)
    titles = [entry["title"] for entry in client.get("/sdapi/v1/sd-models").json()]
    assert titles == [f"Base [{'b' * 10}]", f"Fox [{'a' * 10}]"]
    for title in (titles[1], "Fox", str(fox.pk)):
        paint(client, override_settings={"sd_model_checkpoint": title})
        assert waited[-1].model == fox
    paint(client)
    assert waited[-1].model == base  # the settings of one request are not kept
    assert [row["name"] for row in client.get("/sdapi/v1/loras").json()] == ["Fox"]
    assert bearer(bob).get("/sdapi/v1/loras").json() == []
    paint(bearer(bob), 404, override_settings={"sd_model_checkpoint": titles[1]})


def test_a_chosen_model_is_ones_own_choice(
    bearer: Client, alice: User, bob: User, base: DiffusionModel, ended: Ended
) -> None:
    waited = ended()
    lora, client = make_lora(alice, base), bearer(alice)
    body = {"sd_model_checkpoint": "Fox", "sd_vae": "x", "samples_format": None}
    assert client.post("/sdapi/v1/options", body).json() == {"ignored_fields": ["sd_vae"]}
    shown = client.get("/sdapi/v1/options").json()
    assert shown["sd_model_checkpoint"] == f"Fox [{'a' * 10}]"
    paint(client)
    assert waited[-1].model == lora
    assert bearer(bob).get("/sdapi/v1/options").json()["sd_model_checkpoint"].startswith("Base")
    paint(bearer(bob))
    assert waited[-1].model == base
    DiffusionModel.objects.filter(pk=lora.pk).update(is_active=False)
    assert paint(client, 409)["error"] == "model_unavailable"  # never another one silently


def test_progress_and_interrupt_are_about_my_job(
    bearer: Client, alice: User, bob: User, base: DiffusionModel
) -> None:
    hers = make_generation(alice, base, status="running", progress=0.5, step=2, total_steps=4)
    events.put_preview(hers.pk, b"preview")
    idle = bearer(bob).get("/sdapi/v1/progress").json()
    assert (idle["progress"], idle["state"]["job_count"], idle["current_image"]) == (0, 0, None)
    assert bearer(bob).post("/sdapi/v1/interrupt").status_code == 200
    hers.refresh_from_db()
    assert not hers.cancel_requested
    busy = bearer(alice).get("/sdapi/v1/progress").json()
    assert (busy["progress"], busy["state"]["sampling_step"]) == (0.5, 2)
    assert base64.b64decode(busy["current_image"]) == b"preview"
    skipped = bearer(alice).get("/sdapi/v1/progress?skip_current_image=true").json()
    assert skipped["current_image"] is None
    bearer(alice).post("/sdapi/v1/interrupt")
    hers.refresh_from_db()
    assert hers.cancel_requested


def test_interrupt_takes_what_runs_before_what_waits(
    bearer: Client, alice: User, base: DiffusionModel
) -> None:
    waiting = make_generation(alice, base, status="queued")
    running = make_generation(alice, base, status="running")
    bearer(alice).post("/sdapi/v1/interrupt")
    for job in (waiting, running):
        job.refresh_from_db()
    assert (waiting.status, running.cancel_requested) == ("queued", True)
    GenerationJob.objects.filter(pk=running.pk).update(status="canceled")
    bearer(alice).post("/sdapi/v1/interrupt")
    waiting.refresh_from_db()
    assert waiting.status == "canceled"


def test_an_interrupted_request_says_so(
    bearer: Client, alice: User, base: DiffusionModel, ended: Ended
) -> None:
    ended("canceled", images=0)
    assert paint(bearer(alice), 409)["error"] == "canceled"


def encoded(color: str, size: tuple[int, int] = (64, 64)) -> str:
    return base64.b64encode(picture(color, size=size)).decode()


def test_a_picture_is_painted_over(
    bearer: Client, alice: User, base: DiffusionModel, ended: Ended
) -> None:
    waited = ended()
    body = {
        "prompt": "a fox",
        "init_images": [f"data:image/png;base64,{encoded('red')}"],
        "denoising_strength": 0.4,
        "mask_blur": 4,
        "resize_mode": 0,
    }
    answer = bearer(alice).post("/sdapi/v1/img2img", body)
    assert answer.status_code == 200, answer.content
    (job,) = waited
    assert (job.mode, job.parameters["strength"]) == ("image-to-image", 0.4)
    assert job.image.owner == alice
    info = json.loads(answer.json()["info"])
    assert info["denoising_strength"] == 0.4
    assert info["ignored_fields"] == ["mask_blur", "resize_mode"]  # without a mask it says nothing


@pytest.mark.parametrize("inverted", [0, 1])
def test_with_a_mask_it_is_inpainting(
    bearer: Client, alice: User, base: DiffusionModel, ended: Ended, inverted: int
) -> None:
    waited = ended()
    body = {
        "init_images": [encoded("red")],
        "mask": encoded("black" if inverted else "white"),
        "mask_blur": 2,
        "inpainting_mask_invert": inverted,
    }
    answer = bearer(alice).post("/sdapi/v1/img2img", body)
    assert answer.status_code == 200, answer.content
    (job,) = waited
    assert (job.mode, job.parameters["mask_blur"]) == ("inpaint", 2)
    with storage.open_key(job.mask_image.key) as file:
        assert Image.open(file).convert("L").getextrema() == (255, 255)


def test_a_model_for_inpainting_is_chosen_with_a_mask_only(
    bearer: Client, alice: User, ended: Ended
) -> None:
    waited, client = ended(), bearer(alice)
    painter = make_base("Painter", is_inpainting=True)
    [listed] = client.get("/sdapi/v1/sd-models").json()
    chosen = {"override_settings": {"sd_model_checkpoint": listed["title"]}}
    body = {**chosen, "init_images": [encoded("red")]}
    for path, given in (("txt2img", chosen), ("img2img", body)):
        answer = client.post(f"/sdapi/v1/{path}", {"prompt": "x", **given})
        assert answer.json()["error"] == "model_incompatible"
    client.post("/sdapi/v1/img2img", {**body, "mask": encoded("white")})
    assert [job.model for job in waited] == [painter]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "init_images"),
        ({"init_images": []}, "init_images"),
        ({"init_images": [encoded("red")] * 2}, "init_images"),
        ({"init_images": [7]}, "init_images"),
        ({"init_images": ["%%%"]}, "init_images"),
        ({"init_images": [base64.b64encode(b"no picture").decode()]}, "init_images"),
        ({"init_images": [encoded("red")], "mask": "%%%"}, "mask"),
        ({"init_images": [encoded("red")], "mask": encoded("white", (32, 64))}, "mask"),
        ({"init_images": [encoded("red")], "denoising_strength": 2}, "denoising_strength"),
    ],
)
def test_bad_pictures_are_refused_by_name(
    bearer: Client, alice: User, base: DiffusionModel, body: dict[str, Any], field: str
) -> None:
    answer = bearer(alice).post("/sdapi/v1/img2img", body)
    assert answer.status_code == 422, answer.content
    assert answer.json()["detail"][0]["loc"] == ["body", field]
    assert not GenerationJob.objects.exists()


def test_a_second_pass_and_loras_in_the_prompt(
    bearer: Client, alice: User, base: DiffusionModel, ended: Ended
) -> None:
    waited = ended()
    make_lora(alice, base)
    hires = {"hr_scale": 1.5, "hr_upscaler": "Latent", "hr_second_pass_steps": 3}
    client = bearer(alice)
    info = json.loads(paint(client, enable_hr=False, **hires)["info"])
    assert info["ignored_fields"] == ["enable_hr", *sorted(hires)]
    prompt = "a fox <lora:Fox:0.8>"
    paint(client, enable_hr=True, denoising_strength=0.5, prompt=prompt, **hires)
    values = waited[-1].parameters
    assert (values["hires_scale"], values["hires_steps"], values["hires_strength"]) == (1.5, 3, 0.5)
    assert (values["hires_upscaler"], values["prompt"]) == ("latent", "a fox")
    assert [(lora["name"], lora["weight"]) for lora in values["loras"]] == [("Fox", 0.8)]


# --- who asks -------------------------------------------------------------------------------------
def test_a_token_is_the_password_and_the_password_is_none(
    basic: Callable[[str, str], APIClient], alice: User, bob: User, base: DiffusionModel
) -> None:
    token, secret = ApiToken.issue(alice, "webui")
    assert basic("alice", secret).get("/sdapi/v1/samplers").status_code == 200
    for name, password in (("alice", "correct horse 7"), ("bob", secret), ("", secret)):
        answer = basic(name, password).get("/sdapi/v1/samplers")
        assert (answer.status_code, answer.json()["error"]) == (401, "token_invalid")
    broken = APIClient()
    for value in ("Basic", "Basic %%%", f"Basic {base64.b64encode(b'no-colon').decode()}"):
        broken.credentials(HTTP_AUTHORIZATION=value)
        assert broken.get("/sdapi/v1/samplers").status_code == 401
    # The rest of the site still takes no token in HTTP Basic.
    assert basic("alice", secret).get("/api/images/").status_code == 401
    token.revoked_at = token.created_at
    token.save()
    assert basic("alice", secret).get("/sdapi/v1/samplers").status_code == 401


def test_what_clients_look_up_first_is_there(bearer: Client, alice: User) -> None:
    client = bearer(alice)
    for name in ("scripts", "upscalers", "schedulers", "sd-vae", "embeddings", "samplers"):
        assert client.get(f"/sdapi/v1/{name}").status_code == 200
    assert client.post("/sdapi/v1/refresh-checkpoints").status_code == 200
    assert client.get("/sdapi/v1/options").json()["sd_model_checkpoint"] is None
    answer = client.post("/sdapi/v1/interrogate", {})
    assert (answer.status_code, answer.json()["error"]) == (404, "not_found")


def test_the_openapi_document_tells_of_both_dialects_without_a_warning() -> None:
    from drf_spectacular.drainage import GENERATOR_STATS
    from drf_spectacular.generators import SchemaGenerator
    from drf_spectacular.validation import validate_schema

    GENERATOR_STATS.reset()
    with GENERATOR_STATS.silence():
        schema = SchemaGenerator().get_schema(request=None, public=True)
    validate_schema(schema)
    assert not GENERATOR_STATS, GENERATOR_STATS._warn_cache
    txt2img = schema["paths"]["/sdapi/v1/txt2img/"]["post"]
    assert "A1111Error" in str(txt2img["responses"]["default"])
    assert "OpenAIError" in str(schema["paths"]["/v1/images/generations/"]["post"]["responses"])
    assert {"basicToken": []} in txt2img["security"]

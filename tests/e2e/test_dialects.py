"""The stock clients of both dialects each make a picture on the running site."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator

import pytest
from openai import NotFoundError, OpenAI
from PIL import Image
from webuiapi import WebUIApi

from studio_project.management.demo_client import DemoClient
from tests.e2e.site import Site

PROMPT = "a large red star on a blue background"


@pytest.fixture
def somebody(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[DemoClient, str]]:
    """A new user and their token; no proxy of this machine stands between."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    client = site.user()
    yield client, client.headers["Authorization"].removeprefix("Bearer ")


def test_the_openai_package_paints(site: Site, somebody: tuple[DemoClient, str]) -> None:
    client, token = somebody
    with OpenAI(base_url=f"{site.url}/v1", api_key=token) as openai:
        (model,) = [row.id for row in openai.models.list() if row.owned_by == "studio"]
        answer = openai.images.generate(
            model=model,
            prompt=PROMPT,
            n=2,
            size="64x64",  # type: ignore[arg-type]
            response_format="b64_json",
            quality="hd",
            extra_body={"num_inference_steps": 4, "seed": 7},
        )
        assert answer.data is not None and len(answer.data) == 2
        painted = [base64.b64decode(entry.b64_json or "") for entry in answer.data]
        assert [Image.open(io.BytesIO(file)).size for file in painted] == [(64, 64)] * 2
        assert answer.ignored_fields == ["quality"]  # type: ignore[attr-defined]
        job = client.call("GET", f"/api/generate/{answer.job_id}")  # type: ignore[attr-defined]
        assert (job["status"], job["seed"]) == ("completed", 7)
        assert [client.fetch(image["url"]) for image in job["images"]] == painted
        with pytest.raises(NotFoundError) as caught:
            openai.images.generate(model="dall-e-3", prompt=PROMPT)
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_an_a1111_client_paints(site: Site, somebody: tuple[DemoClient, str]) -> None:
    client, token = somebody
    webui = WebUIApi(baseurl=f"{site.url}/sdapi/v1", username=client.name, password=token)  # type: ignore[attr-defined]
    with webui.session:
        assert "Euler a" in webui.util_get_sampler_names()
        (title,) = webui.util_get_model_names()
        webui.util_set_model(title)
        assert webui.util_get_current_model() == title
        result = webui.txt2img(prompt=PROMPT, width=64, height=64, steps=4, seed=7)
        assert (result.image.size, result.image.format) == ((64, 64), "PNG")
        assert (result.info["seed"], result.info["sampler_name"]) == (7, "Euler a")
        assert "Steps: 4" in result.info["infotexts"][0]
        assert "restore_faces" in result.info["ignored_fields"]
        job = client.call("GET", f"/api/generate/{result.info['job_id']}")
        assert (job["status"], job["scheduler"]) == ("completed", "euler_a")
        webui.util_wait_for_ready()
        webui.interrupt()
        with pytest.raises(RuntimeError, match="steps"):
            webui.txt2img(prompt=PROMPT, width=64, height=64, steps=10_000)

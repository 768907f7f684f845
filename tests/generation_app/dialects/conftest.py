"""Clients of the dialects, and a site on which a request is painted at once."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest
from rest_framework.test import APIClient

from generation_app.dialects import adapter
from generation_app.models import GenerationJob
from models_app.models import DiffusionModel
from studio_project.models import ApiToken, User
from tests.factories import make_base, make_image

Client = Callable[[User], APIClient]


@pytest.fixture
def base(db: None) -> DiffusionModel:
    """A model that everyone may use."""
    return make_base()


@pytest.fixture
def bearer(db: None) -> Client:
    """Make a client with a token as scripts send it."""

    def make(user: User) -> APIClient:
        client = APIClient()
        _row, secret = ApiToken.issue(user, "script")
        client.credentials(HTTP_AUTHORIZATION=f"Bearer {secret}")
        return client

    return make


@pytest.fixture
def basic() -> Callable[[str, str], APIClient]:
    """Make a client with HTTP Basic."""

    def make(name: str, password: str) -> APIClient:
        client = APIClient()
        pair = base64.b64encode(f"{name}:{password}".encode()).decode()
        client.credentials(HTTP_AUTHORIZATION=f"Basic {pair}")
        return client

    return make


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[GenerationJob]]:
    """Let the wait for a job end in a given way, and tell which jobs were waited for."""

    def arrange(status: str = "completed", *, images: int | None = None, **fields: Any) -> list:
        waited: list[GenerationJob] = []

        def wait(job: GenerationJob, seconds: float) -> GenerationJob:
            if job not in waited:
                waited.append(job)
                number = job.parameters["num_images"] if images is None else images
                for index in range(number):
                    make_image(job, index)
                GenerationJob.objects.filter(pk=job.pk).update(status=status, **fields)
            job.refresh_from_db()
            return job

        monkeypatch.setattr(adapter, "wait_for", wait)
        return waited

    return arrange

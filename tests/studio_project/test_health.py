"""Whether the site answers, and what it says about what is missing."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from studio_project import health

pytestmark = pytest.mark.django_db


def test_a_living_process_says_so_without_asking_anybody(client: Client) -> None:
    response = client.get("/healthz")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})
    assert client.post("/healthz").status_code == 405


def test_a_site_is_ready_when_all_it_needs_answers(client: Client) -> None:
    response = client.get("/readyz")
    assert response.status_code == 200
    assert set(response.json()["checks"]) == {"database", "redis", "storage", "migrations"}
    assert "no-store" in response["Cache-Control"] or "no-cache" in response["Cache-Control"]


def test_what_is_missing_is_named_without_details(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> bool:
        raise ConnectionError("redis://:canary@10.0.0.5")

    monkeypatch.setitem(health.CHECKS, "redis", broken)
    response = client.get("/readyz")
    assert response.status_code == 503
    assert response.json()["checks"]["redis"] == "failed"
    assert response.json()["checks"]["database"] == "ok"
    assert "canary" not in response.content.decode()
    assert "canary" in caplog.text


def test_a_redis_that_is_away_is_noticed(settings: Any) -> None:
    settings.DRAMATIQ_BROKER = {"BROKER": "dramatiq.brokers.redis.RedisBroker"}
    settings.STUDIO_REDIS_URL = "redis://127.0.0.1:1/0"
    assert not health.check("redis")


def test_a_redis_that_answers_is_noticed(settings: Any, redis_url: str) -> None:
    settings.DRAMATIQ_BROKER = {"BROKER": "dramatiq.brokers.redis.RedisBroker"}
    settings.STUDIO_REDIS_URL = redis_url
    assert health.check("redis")

"""A request whose body finds no room is told so, in its language, by whoever finds out first."""

from __future__ import annotations

import asyncio
import errno
import json
from typing import Any

import pytest
from django.db import OperationalError
from rest_framework.test import APIClient

from datasets_app import services
from studio_project.full_disk import RoomForBodies, no_room
from studio_project.models import User


def _answer_of(error: Exception) -> list[Any]:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        raise error

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(RoomForBodies(application)({"headers": []}, None, send))
    return sent


def test_no_room_for_a_body_is_507() -> None:
    start, body = _answer_of(OSError(errno.ENOSPC, "No space left on device"))
    assert start["status"] == 507
    assert start["headers"] == [(b"Content-Type", b"application/problem+json")]
    assert json.loads(body["body"])["code"] == "disk_full"


def test_other_errors_pass() -> None:
    with pytest.raises(OSError, match="broken"):
        _answer_of(OSError(errno.EIO, "broken"))


def test_it_speaks_the_requests_language() -> None:
    _start, body = no_room([(b"Accept-Language", b"fr-FR,fr;q=0.9")])
    assert "disque" in json.loads(body["body"])["detail"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), OperationalError("database or disk is full")]
)
def test_a_view_that_finds_no_room_answers_507(
    alice: User, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(services, "create_dataset", full)
    client = APIClient()
    client.force_login(alice)
    answer = client.post("/api/datasets/", {"name": "Foxes"})
    assert (answer.status_code, answer.json()["code"]) == (507, "disk_full")

"""What the tests of jobs, events and workers share."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from django.db.models.functions import Now
from django.utils import timezone

from generation_app.models import GenerationJob
from studio_project import events, redis_server, supervision
from studio_project.child_process import Child
from studio_project.jobs import registry
from studio_project.models import User, Worker

CHILDREN = Path(__file__).parent / "children"


def wait_until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Poll until something is true, and fail if it never is."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
    return found


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, Any]]]:
    """Collect what would go to the channel layer: groups and message."""
    messages: list[tuple[list[str], dict[str, Any]]] = []
    monkeypatch.setattr(
        events, "deliver", lambda groups, message: messages.append((groups, message))
    )
    monkeypatch.setattr(events._queue_bell, "_last_sent", 0.0)
    return messages


@pytest.fixture
def rung(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect which queues' bells are rung."""
    queues: list[str] = []
    for name in registry._bells:
        monkeypatch.setitem(registry._bells, name, lambda name=name: queues.append(name))
    monkeypatch.setattr(registry, "_quiet_until", 0.0)
    return queues


@pytest.fixture
def make_job(db: None) -> Callable[..., GenerationJob]:
    """Make a job of a user, queued unless said otherwise."""

    def make(owner: User, **fields: Any) -> GenerationJob:
        fields = {"status": "queued", "queued_at": timezone.now(), "model_name": "m"} | fields
        return GenerationJob.objects.create(owner=owner, **fields)

    return make


@pytest.fixture
def make_worker(db: None) -> Callable[..., Worker]:
    """Make a worker that lives and is idle."""

    def make(name: str = "w", **fields: Any) -> Worker:
        defaults: dict[str, Any] = {
            "host": "here",
            "pid": 1,
            "device": "cpu",
            "memory_bytes": 8 * 1024**3,
            "queues": ["training", "generation"],
            "code_version": "x",
            "state": Worker.State.IDLE,
            "last_seen_at": Now(),
        }
        return Worker.objects.create(name=name, **defaults | fields)

    return make


@pytest.fixture
def serving(make_worker: Callable[..., Worker]) -> Iterator[Worker]:
    """Make this process a worker for one test."""
    worker = make_worker("this-process")
    supervision.serve_as(worker)
    yield worker
    supervision._process.worker = None
    supervision._process.stopping.clear()


@pytest.fixture
def quick(settings: Any) -> None:
    """Look at rows and renew leases at once."""
    settings.STUDIO_CONTROL_SECONDS = 0.05
    settings.STUDIO_HEARTBEAT_SECONDS = 0.1
    settings.STUDIO_LEASE_SECONDS = 30.0


@pytest.fixture
def child() -> Iterator[Child]:
    """A child that does what its request tells it to."""
    started = Child([sys.executable, "-m", "tests.studio_project.children.scripted"])
    yield started
    started.kill()


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a Redis-compatible server for the tests that need a real one."""
    folder = tmp_path_factory.mktemp("redis")
    server = redis_server.configure(folder)
    process = subprocess.Popen(server.command, stdout=subprocess.DEVNULL)
    client = redis.Redis.from_url(server.url)

    def answers() -> bool:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False

    try:
        wait_until(answers)
        yield server.url
    finally:
        client.close()
        process.terminate()
        process.wait(10)

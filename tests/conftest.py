"""Fixtures every test may use: two strangers, an administrator, and their clients."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from django.core.cache import cache
from django.test import Client
from rest_framework.test import APIClient

from studio_project import child_process, events
from studio_project.models import User
from tests.warm import Nursery

# Nothing is random without a seed: the same examples in every run, however slow the machine is.
hypothesis.settings.register_profile("studio", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("studio")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests with real processes last: a browser's event loop stays in the main thread."""
    items.sort(key=lambda item: "e2e" in item.path.parts)


def pytest_collection_finish() -> None:
    """Leave out of every later collection what the libraries hold: a trainer collects often."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """A process that forks children with the libraries loaded."""
    made = Nursery(child_process._child_environment({}, ""))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _own_files(settings: Any, tmp_path: Path) -> None:
    """Give each test its own storage and work folders."""
    settings.MEDIA_ROOT = tmp_path / "files"
    settings.STORAGES = {
        **settings.STORAGES,
        "default": {
            "BACKEND": "django.core.files.storage.FileSystemStorage",
            "OPTIONS": {"location": str(tmp_path / "files")},
        },
    }
    settings.STUDIO_WORK_DIR = tmp_path / "work"


@pytest.fixture(autouse=True)
def _own_events() -> Iterator[None]:
    """Let no event of one test reach the sockets of the next: the queue's bell rings late."""
    yield
    bell = events._queue_bell
    with bell._lock:
        bell._pending = None
    deadline = time.monotonic() + events.SEND_SECONDS
    while events._sender._in_flight:
        assert time.monotonic() < deadline, "events are still being sent"
        time.sleep(0.001)


@pytest.fixture
def _clean_cache(db: None) -> Iterator[None]:
    """Forget rate limits between tests that touch them."""
    cache.clear()
    yield
    cache.clear()


def _user(name: str, **fields: object) -> User:
    return User.objects.create_user(name, f"{name}@example.org", "correct horse 7", **fields)


@pytest.fixture
def alice(db: None) -> User:
    """The owner in most tests."""
    return _user("alice")


@pytest.fixture
def bob(db: None) -> User:
    """A stranger to Alice."""
    return _user("bob")


@pytest.fixture
def staff(db: None) -> User:
    """An administrator."""
    return _user("staff", is_staff=True, is_superuser=True)


@pytest.fixture
def api() -> Callable[[User | None], APIClient]:
    """Make an API client, signed in as the given user."""

    def make(user: User | None = None) -> APIClient:
        client = APIClient()
        if user is not None:
            client.force_login(user)
        return client

    return make


@pytest.fixture
def browser() -> Callable[[User | None], Client]:
    """Make a page client, signed in as the given user."""

    def make(user: User | None = None) -> Client:
        client = Client()
        if user is not None:
            client.force_login(user)
        return client

    return make

"""Fixtures of the dataset tests: a dataset of each person, and the events that went out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from django.conf import settings as django_settings
from django.db import connection

from datasets_app import removal, services
from datasets_app.models import Dataset
from studio_project import events
from studio_project.models import User

Sent = tuple[str, dict[str, Any]]


@pytest.fixture
def foxes(alice: User) -> Dataset:
    """A private dataset of Alice."""
    return services.create_dataset(alice, name="Foxes")


@pytest.fixture
def owls(bob: User) -> Dataset:
    """A private dataset of Bob."""
    return services.create_dataset(bob, name="Owls")


@pytest.fixture
def stored_files() -> Callable[[], set[str]]:
    """Lists the keys of all stored files."""

    def files() -> set[str]:
        root = Path(django_settings.MEDIA_ROOT)
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}

    return files


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch, db: None) -> Callable[[], list[Sent]]:
    """Returns what was published since the last call, each event checked against its schema."""
    box: list[Sent] = []

    def deliver(groups: list[str], message: Mapping[str, Any]) -> None:
        event = message["event"]
        jsonschema.validate(event, events.EVENT_SCHEMAS[event["type"]])
        box.extend((group, event) for group in groups)

    def flush() -> list[Sent]:
        # The test's own transaction never commits: what waits for it is called here.
        waiting, connection.run_on_commit = connection.run_on_commit, []
        for _savepoints, callback, _robust in waiting:
            callback()
        found, box[:] = list(box), []
        return found

    monkeypatch.setattr(events, "deliver", deliver)
    return flush


@pytest.fixture
def guards(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The guards of this test alone."""
    own: list[Any] = []
    monkeypatch.setattr(removal, "_guards", own)
    return own

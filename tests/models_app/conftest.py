"""Models to test with: their rows, their files, and the events they cause."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from django.db import transaction

from models_app import services
from models_app.models import DiffusionModel
from studio_project import events, storage
from studio_project.event_schemas import EVENT_SCHEMAS
from studio_project.models import User
from tests.models_app.fixture_folders import write_safetensors

_numbers = itertools.count(1)


@pytest.fixture
def make_base(db: None) -> Callable[..., DiffusionModel]:
    """Make a ready base model of the site."""

    def make(name: str = "", **fields: Any) -> DiffusionModel:
        name = name or f"base-{next(_numbers)}"
        row = {
            "name": name,
            "title": name.title(),
            "type": "base_model",
            "architecture": "sd1",
            "path": f"models/{name}",
            "visibility": "private" if fields.get("owner") else "shared",
            **fields,
        }
        return DiffusionModel.objects.register(**row)

    return make


@pytest.fixture
def make_lora(
    make_base: Callable[..., DiffusionModel], tmp_path: Any
) -> Callable[..., DiffusionModel]:
    """Make a LoRA of a user, with a file."""

    def make(owner: User, **fields: Any) -> DiffusionModel:
        number = next(_numbers)
        file = write_safetensors(tmp_path / f"{number}.safetensors", {"unet.lora_A": (8, 8)})
        key = storage.new_key("models", suffix=".safetensors")
        size = storage.save(key, file)
        row = {
            "name": f"Trained-{number}",
            "type": "lora",
            "path": key,
            "size_bytes": size,
            "owner": owner,
            **fields,
        }
        row.setdefault("base_model", None)
        row["base_model"] = row["base_model"] or make_base()
        return DiffusionModel.objects.register(**row)

    return make


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Collect (group, event) of everything published; each is checked against its schema."""
    found: list[tuple[str, dict[str, Any]]] = []

    def deliver(groups: list[str], message: dict[str, Any]) -> None:
        event = message["event"]
        jsonschema.validate(event, EVENT_SCHEMAS[event["type"]])
        found.extend((group, event) for group in groups)

    monkeypatch.setattr(events, "deliver", deliver)
    # Tests run in a transaction that never commits.
    monkeypatch.setattr(transaction, "on_commit", lambda call, robust=False: call())
    return found


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """Collect (model id, what) of what listeners hear."""
    found: list[tuple[int, str]] = []
    monkeypatch.setattr(services, "_listeners", [])
    services.register_model_listener(lambda model, what: found.append((model.pk, what)))
    return found

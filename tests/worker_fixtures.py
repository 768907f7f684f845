"""A worker in this process, with real children and without Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from generation_app import actors as generation_actors
from models_app.models import DiffusionModel
from studio_project import child_process, device_share, supervision
from studio_project.models import Worker
from tests import warm
from tests.factories import make_base_of, make_worker, tiny_folder


@pytest.fixture
def _warm_children(nursery: warm.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork single trainers and engines; start whatever else is asked for."""
    cold = child_process.spawn

    def spawn(command: Sequence[str], *, env: Mapping[str, str], **options: Any) -> Any:
        if command[-1] in warm.MODULES and len(command) == 3:
            return nursery.start(command[-1], env=env, cwd=options["cwd"])
        return cold(command, env=env, **options)

    monkeypatch.setattr(child_process, "spawn", spawn)


@pytest.fixture
def worker(
    transactional_db: None,
    _warm_children: None,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Worker]:
    """Make this process the worker of a CPU."""
    settings.STUDIO_HEARTBEAT_SECONDS = 0.5
    settings.STUDIO_CONTROL_SECONDS = 0.05
    monkeypatch.setattr(device_share, "CPU_NICE", 0)
    row = make_worker()
    supervision.serve_as(row)
    yield row
    generation_actors.stop_engine()
    supervision.serve_as(row)  # a test may have asked it to stop


Once = Callable[[type, str, Callable[[], object]], None]


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> Once:
    """Do something right after a recorder has first written down a kind of message."""

    def patch(recorder: type, handler: str, action: Callable[[], object]) -> None:
        original = getattr(recorder, handler)
        done: list[object] = []

        def handle(self: Any, message: dict[str, Any]) -> None:
            original(self, message)
            if not done:
                done.append(action())

        monkeypatch.setattr(recorder, handler, handle)

    return patch


@pytest.fixture
def tiny_base(transactional_db: None) -> DiffusionModel:
    """Register a tiny pipeline with its files."""
    return make_base_of(tiny_folder())

"""A run that stands aside: when it is asked to, what it obeys meanwhile, and when it comes back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from generation_app.models import GenerationJob
from studio_project import supervision
from studio_project.child_process import Child
from studio_project.jobs import Job
from studio_project.models import User, Worker
from studio_project.supervision import supervise
from tests.studio_project.test_supervision import MakeJob, claim, ignore, request

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("quick")]

GIBIBYTE = 1024**3


@pytest.fixture
def crowded(alice: User, make_job: MakeJob, make_worker: Callable[..., Worker]) -> Iterator[Job]:
    """A job that runs on a GPU of 16 GiB while somebody waits whom it does not hold as well."""
    worker = make_worker(device="cuda:0", memory_bytes=16 * GIBIBYTE)
    supervision.serve_as(worker)
    device = supervision.current_device()
    device._turn_seconds = device._pictures_seconds = 0.0
    job = device.take(
        "generation",
        lambda free: claim(make_job, alice, worker),
        lambda job: 12 * GIBIBYTE,
    )
    assert job is not None
    device.want_room("training", 6 * GIBIBYTE)
    yield job
    supervision._process.worker = None


def test_a_run_stands_aside_and_comes_back(
    crowded: Job, child: Child, rung: list[str], settings: Any
) -> None:
    settings.STUDIO_CHILD_SILENCE_SECONDS = 2.0
    device = supervision.current_device()
    device._pictures_seconds = 1000.0
    free: list[int | None] = []
    heard: list[str] = []

    def on_message(message: dict[str, Any]) -> None:
        heard.append(message["type"])
        if message["type"] == "aside":
            free.append(device.free_bytes("training"))
            # It may be silent for as long as the others take.
            threading.Timer(2.5, device.want_room, ("training", 0)).start()

    grown = {"type": "memory", "held_bytes": 13 * GIBIBYTE}
    script = request(("aside", GIBIBYTE), ("send", grown))
    outcome = supervise(crowded, child, script, on_message=on_message, stands_aside=True)
    assert outcome.kind == "done"
    assert heard[-3:] == ["aside", "back", "memory"]
    assert free == [15 * GIBIBYTE]
    assert device.free_bytes("training") == 3 * GIBIBYTE
    assert "training" in rung  # somebody may come now
    device.give_back("generation")


@pytest.mark.parametrize(("how", "end"), [("pause", "stopped"), ("keep", "done")])
def test_a_run_that_stands_aside_still_obeys(
    crowded: Job, child: Child, how: str, end: str
) -> None:
    """What shall be kept comes back for it, though others wait."""
    supervision.current_device()._pictures_seconds = 1000.0

    def on_message(message: dict[str, Any]) -> None:
        if message["type"] == "aside":
            GenerationJob.objects.get(pk=crowded.pk).request_stop(how)

    script = request(("aside", GIBIBYTE))
    outcome = supervise(crowded, child, script, on_message=on_message, stands_aside=True)
    assert outcome.kind == end
    assert outcome.message.get("how", how) == how


def test_who_cannot_stand_aside_is_not_asked_to(crowded: Job, child: Child) -> None:
    asked: list[Any] = []
    child.send = asked.append  # type: ignore[assignment, method-assign]
    watch = supervision._Supervision(crowded, child, ignore, stands_aside=False)
    assert not watch.aside.look("")
    assert asked == []

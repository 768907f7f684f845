"""One child for several jobs: when it hears of the run, and who hears what of it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from generation_app.models import GenerationJob
from studio_project import supervision
from studio_project.child_output import Mailbox
from studio_project.child_process import Child
from studio_project.models import User, Worker
from studio_project.seats import Company, Seat, seat_of
from studio_project.supervision import run_queue, supervise
from tests.factories import make_generation


class FakeChild:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.alive = True
        self.sent: list[dict[str, Any]] = []
        self.boxes: dict[str, Mailbox] = {}
        self.logs = 0

    def open_box(self, job_id: str) -> Mailbox:
        return self.boxes.setdefault(job_id, Mailbox())

    def close_box(self, job_id: str) -> None:
        if box := self.boxes.pop(job_id, None):
            box.close()

    def start_log(self) -> None:
        self.logs += 1

    def send(self, command: dict[str, Any]) -> bool:
        self.sent.append(command)
        return self.alive

    def kill(self) -> int:
        self.alive = False
        return -9


@pytest.fixture
def fake() -> FakeChild:
    return FakeChild()


def take_seats(child: Any, *job_ids: str) -> tuple[Company, list[Seat]]:
    company = Company(job_ids)
    return company, [Seat(company, job_id, child) for job_id in job_ids]


def run(seed: int) -> dict[str, Any]:
    return {"cmd": "run", "request": {"seed": seed}}


def test_the_child_hears_of_the_run_when_the_last_one_has_come(fake: FakeChild) -> None:
    _, (first, second) = take_seats(fake, "a", "b")
    first.start_log()
    assert first.send(run(1))
    assert (fake.sent, fake.logs) == ([], 0)
    second.send(run(2))
    requests = [{"seed": 1, "job_id": "a"}, {"seed": 2, "job_id": "b"}]
    assert fake.sent == [{"cmd": "run", "requests": requests}]
    assert fake.logs == 1
    assert first.log_tail() == ""


def test_whoever_leaves_before_is_not_waited_for(fake: FakeChild) -> None:
    company, (first, _second) = take_seats(fake, "a", "b")
    first.send(run(1))
    company.leave("b")  # it could not even be prepared
    assert [one["job_id"] for one in fake.sent[0]["requests"]] == ["a"]
    assert "b" not in fake.boxes
    company.leave("a")
    assert len(fake.sent) == 1


def test_a_stop_before_the_start_is_answered_at_once(fake: FakeChild) -> None:
    _, (first, second) = take_seats(fake, "a", "b")
    first.send(run(1))
    first.send({"cmd": "stop", "how": "cancel"})
    assert first.messages.get(0) == {"type": "stopped", "how": "cancel"}
    assert fake.sent == []
    second.send(run(2))
    assert [one["job_id"] for one in fake.sent[0]["requests"]] == ["b"]


def test_a_stop_means_one_job_and_the_last_one_ends_the_child(fake: FakeChild) -> None:
    _, (first, second) = take_seats(fake, "a", "b")
    for seat in (first, second):
        seat.send(run(1))
    first.send({"cmd": "stop", "how": "yield"})
    assert fake.sent[-1] == {"cmd": "stop", "how": "yield", "job_id": "a"}
    assert first.kill() == 0
    assert fake.sent[-1] == {"cmd": "stop", "how": "cancel", "job_id": "a"}
    assert first.messages.finished
    assert second.alive
    assert second.kill() == -9
    assert not first.alive


def test_a_child_that_is_dead_is_nobodys_to_keep(fake: FakeChild) -> None:
    _, (first, _second) = take_seats(fake, "a", "b")
    fake.alive = False
    assert first.kill() == -9


# --- the child's side of it -----------------------------------------------------------------------
def test_messages_find_the_job_that_they_are_about(child: Child) -> None:
    one, other = child.open_box("a"), child.open_box("b")
    told = [("a", 1), ("b", 1), ("a", 2), ("gone", 1), ("b", 2)]
    actions = [
        {"do": "send", "with": {"type": "step", "step": step, "total_steps": 2, "job_id": name}}
        for name, step in told
    ]
    child.send({"cmd": "run", "request": {"actions": [*actions, {"do": "exit", "with": 0}]}})
    heard = []
    while message := child.messages.get(20):
        heard.append(message["type"])
    assert heard == ["ready"]  # nothing of a job, least of all of one that nobody watches
    for box in (one, other):
        first = box.get(5)
        assert first is not None
        history = first["history"]
        while (more := box.get(5)) is not None:
            history += more["history"]
        assert [step["step"] for step in history] == [1, 2]
        assert box.finished
    assert child.open_box("late").finished


def end_together(child: Child, *owners: User, then: Callable[[GenerationJob], None]) -> list[str]:
    """Claim a job of each owner together and watch over all; do something once all are at work."""
    for owner in owners:
        make_generation(owner, status="queued", joint_key="k")
    ended: list[str] = []
    at_work = threading.Barrier(len(owners))

    def run(job: GenerationJob) -> None:
        seat = seat_of(job, child)
        at_work.wait(20)
        then(job)
        how = "yield" if supervision.worker_stopping() else "cancel"
        outcome = supervise(job, seat, {"until": how}, on_message=lambda message: None)
        ended.append(f"{job.owner.username} {outcome.kind}")
        if outcome.kind == "stopped":
            job.settle_stopped(outcome.message["how"])

    run_queue(GenerationJob, run)
    return sorted(ended)


@pytest.mark.django_db(transaction=True)
def test_a_worker_that_ends_gives_all_of_them_back(
    alice: User, bob: User, serving: Worker, child: Child, settings: Any
) -> None:
    settings.STUDIO_CONTROL_SECONDS = 0.05
    ended = end_together(child, alice, bob, then=lambda job: supervision.stop_worker())
    assert ended == ["alice stopped", "bob stopped"]
    jobs = GenerationJob.objects.all()
    assert [(job.status, job.crash_count, job.turn_at) for job in jobs] == [("queued", 0, None)] * 2


@pytest.mark.django_db(transaction=True)
def test_one_that_is_lost_leaves_the_child_to_the_others(
    alice: User, bob: User, serving: Worker, child: Child, settings: Any
) -> None:
    settings.STUDIO_CONTROL_SECONDS = 0.05

    def lose(job: GenerationJob) -> None:
        rows = GenerationJob.objects.filter(pk=job.pk)
        if job.owner == alice:
            rows.update(epoch=job.epoch + 1)
        else:
            rows.update(cancel_requested=True)

    assert end_together(child, alice, bob, then=lose) == ["alice lost", "bob stopped"]
    assert child.alive
    lost, canceled = (GenerationJob.objects.get(owner=owner) for owner in (alice, bob))
    assert (lost.status, lost.epoch, canceled.status) == ("running", 2, "canceled")


def test_several_requests_are_answered_each_and_stopped_each() -> None:
    """What a run of several would do if its handler broke, with a real pipe."""
    child = Child([sys.executable, "-m", "tests.studio_project.children.scripted"])
    try:
        boxes = [child.open_box(name) for name in "ab"]
        requests = [{"job_id": "a", "until": "cancel"}, {"job_id": "b", "until": "yield"}]
        child.send({"cmd": "run", "requests": requests})
        child.send({"cmd": "stop", "how": "yield", "job_id": "b"})
        child.send({"cmd": "stop", "how": "cancel", "job_id": "a"})
        for box, how in zip(boxes, ("cancel", "yield"), strict=True):
            message = box.get(20)
            assert message is not None
            assert (message["type"], message["how"]) == ("stopped", how)
        child.send({"cmd": "run", "requests": [{"job_id": "a"}, {"job_id": "b"}]})  # it breaks
        for box in boxes:
            message = box.get(20)
            assert message is not None
            assert (message["type"], message["code"]) == ("error", "internal")
    finally:
        child.kill()

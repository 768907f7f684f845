"""Watching over a child: what reaches the actor, and every way in which a run can end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection

from generation_app.models import GenerationJob
from studio_project import jobs, supervision
from studio_project.child_process import Child
from studio_project.child_protocol import EXIT_DEVICE_BROKEN
from studio_project.jobs import Job, JobLost
from studio_project.models import User, Worker
from studio_project.supervision import Outcome, run_queue, supervise
from tests.studio_project.conftest import wait_until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("quick")]

MakeJob = Callable[..., GenerationJob]
Action = tuple[str, Any]


def request(*actions: Action) -> dict[str, Any]:
    return {"actions": [{"do": name, "with": argument} for name, argument in actions]}


def claim(make_job: MakeJob, owner: User, worker: Worker) -> GenerationJob:
    make_job(owner)
    job = jobs.claim(GenerationJob, worker)
    assert job is not None
    return job


def in_background(work: Callable[[], None]) -> threading.Thread:
    def run() -> None:
        try:
            work()
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def ignore(message: dict[str, Any]) -> None:
    """Take no interest in what a child says."""


def test_a_run_that_is_done(alice: User, make_job: MakeJob, serving: Worker, child: Child) -> None:
    job = claim(make_job, alice, serving)
    heard: list[dict[str, Any]] = []
    outcome = supervise(
        job, child, request(("print", "hello"), ("steps", 300)), on_message=heard.append
    )
    assert outcome.kind == "done"
    assert outcome.message["outputs"] == {}
    steps = [message for message in heard if message["type"] == "step"]
    assert steps[-1]["step"] == 300
    assert [one["step"] for step in steps for one in step["history"]] == list(range(1, 301))
    job.refresh_from_db()
    assert job.status == Job.Status.RUNNING  # what is made of the result is the actor's business
    assert "hello" in job.log_tail
    assert child.alive


def test_progress_comes_at_most_four_times_a_second(
    alice: User, make_job: MakeJob, serving: Worker, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "PROGRESS_SECONDS", 60.0)
    monkeypatch.setattr(supervision.time, "monotonic", lambda: 1000.0)
    job = claim(make_job, alice, serving)
    heard: list[dict[str, Any]] = []
    script = request(("steps", 5), ("send", {"type": "phase", "phase": "saving"}), ("steps", 9))
    supervise(job, child, script, on_message=heard.append)
    told = [
        (message["type"], message.get("step")) for message in heard if message["type"] != "ready"
    ]
    # Before a phase and before the end it comes in any case, for the order is kept.
    assert told[-2:] == [("phase", None), ("step", 9)]


def test_one_jobs_log_is_not_the_next_ones(
    alice: User, bob: User, make_job: MakeJob, serving: Worker, child: Child
) -> None:
    supervise(
        claim(make_job, alice, serving), child, request(("print", "secret")), on_message=ignore
    )
    job = claim(make_job, bob, serving)
    supervise(job, child, request(("print", "mine")), on_message=ignore)
    job.refresh_from_db()
    assert "secret" not in job.log_tail


def test_the_lease_is_renewed_and_the_log_written_meanwhile(
    alice: User, make_job: MakeJob, serving: Worker, child: Child
) -> None:
    job = claim(make_job, alice, serving)
    first = job.lease_expires_at

    def renewed() -> bool:
        row = GenerationJob.objects.get(pk=job.pk)
        return row.lease_expires_at > first and "working" in row.log_tail

    def watch() -> None:
        try:
            wait_until(renewed)
        finally:
            GenerationJob.objects.get(pk=job.pk).request_cancel()

    watcher = in_background(watch)
    outcome = supervise(job, child, request(("print", "working"), ("wait", 0)), on_message=ignore)
    watcher.join()
    assert (outcome.kind, outcome.message["how"]) == ("stopped", "cancel")
    job.settle_stopped("cancel")
    assert job.status == Job.Status.CANCELED


@pytest.mark.parametrize("how", ["pause", "keep"])
def test_a_flag_on_the_row_reaches_the_child(
    how: str, alice: User, make_job: MakeJob, serving: Worker, child: Child
) -> None:
    job = claim(make_job, alice, serving)
    job.request_stop(how)
    outcome = supervise(job, child, request(("wait", 0)), on_message=ignore)
    assert (outcome.kind, outcome.message["how"]) == ("stopped", how)


def test_a_worker_that_ends_gives_its_job_back(
    alice: User, make_job: MakeJob, serving: Worker, child: Child
) -> None:
    job = claim(make_job, alice, serving)
    supervision.stop_worker()
    outcome = supervise(job, child, request(("wait", 0)), on_message=ignore)
    assert (outcome.kind, outcome.message["how"]) == ("stopped", "yield")
    job.settle_stopped("yield")
    assert (job.status, job.crash_count) == (Job.Status.QUEUED, 0)


def test_a_turn_ends_when_somebody_else_waits_and_comes_again(
    alice: User,
    bob: User,
    make_job: MakeJob,
    serving: Worker,
    child: Child,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(GenerationJob, "slice_seconds", classmethod(lambda cls: 0.2))
    long = make_job(alice, total_steps=100)
    job = jobs.claim(GenerationJob, serving)
    short = make_job(bob, total_steps=1)
    script = request(("send", {"type": "step", "step": 1, "total_steps": 100}), ("wait", 0))
    outcome = supervise(job, child, script, on_message=ignore)
    assert (outcome.kind, outcome.message["how"]) == ("stopped", "slice")
    job.settle_stopped("slice")
    long.refresh_from_db()
    assert (long.status, long.crash_count, long.epoch) == (Job.Status.QUEUED, 0, 1)
    assert long.queued_at == job.queued_at  # its age is its own
    assert jobs.queue_order(GenerationJob) == [short.pk, long.pk]
    claimed = jobs.claim(GenerationJob, serving)
    assert claimed == short
    claimed.move(Job.Status.COMPLETED, from_=["running"], epoch=claimed.epoch)
    assert jobs.claim(GenerationJob, serving) == long


@pytest.mark.parametrize(
    "waiting", ["nobody", "mine", "too_large", "whose_other_runs", "untouched"]
)
def test_a_turn_goes_on_when_nobody_else_would_come_first(
    waiting: str,
    alice: User,
    bob: User,
    make_job: MakeJob,
    serving: Worker,
    child: Child,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(GenerationJob, "slice_seconds", classmethod(lambda cls: 0.1))
    make_job(alice, total_steps=100)
    job = jobs.claim(GenerationJob, serving)
    if waiting == "mine":
        make_job(alice)
    elif waiting == "too_large":
        make_job(bob, required_bytes=10**15)
    elif waiting == "whose_other_runs":
        make_job(bob, status="running")
        make_job(bob)
    elif waiting == "untouched":  # by its own training: not one step is done yet
        make_job(bob)
    step = {"type": "step", "step": 1, "total_steps": 100}
    script = [] if waiting == "untouched" else [("send", step)]
    looked: list[Any] = []
    original = supervision.Slice.look

    def look(self: Any, *args: Any) -> None:
        original(self, *args)
        looked.append(self.is_over)
        if len(looked) == 5:
            GenerationJob.objects.get(pk=job.pk).request_stop("pause")

    monkeypatch.setattr(supervision.Slice, "look", look)
    outcome = supervise(job, child, request(*script, ("wait", 0)), on_message=ignore)
    assert outcome.message["how"] == "pause"
    assert not any(looked)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("behaviour", ["deaf", "chatter"])
def test_a_child_that_does_not_obey_is_killed(
    behaviour: str,
    alice: User,
    make_job: MakeJob,
    serving: Worker,
    child: Child,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(supervision.OBEY_SECONDS, "cancel", 0.3)
    job = claim(make_job, alice, serving)
    job.request_cancel()
    outcome = supervise(job, child, request((behaviour, "x")), on_message=ignore)
    assert (outcome.kind, outcome.message["how"]) == ("stopped", "cancel")
    assert outcome.message["reason"] == "disobeyed"
    assert not child.alive


def test_what_a_child_said_in_time_counts_though_it_is_read_late(
    alice: User, make_job: MakeJob, serving: Worker, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = claim(make_job, alice, serving)
    job.request_stop("keep")

    def is_done() -> bool:
        return any(message["type"] == "done" for message in child.messages._messages)

    def store_slowly(message: dict[str, Any]) -> None:
        if message["type"] == "checkpoint":
            wait_until(is_done)
            monkeypatch.setitem(supervision.OBEY_SECONDS, "keep", -1.0)

    script = request(("await_stop", 0), ("send", {"type": "checkpoint"}), ("send", {"type": "x"}))
    assert supervise(job, child, script, on_message=store_slowly).kind == "done"


def test_a_crash_queues_the_job_again_with_the_log(
    alice: User, make_job: MakeJob, serving: Worker, child: Child
) -> None:
    job = claim(make_job, alice, serving)
    outcome = supervise(job, child, request(("log", "boom\n"), ("exit", 3)), on_message=ignore)
    assert (outcome.kind, outcome.settled) == ("crashed", True)
    job.refresh_from_db()
    assert (job.status, job.crash_count) == (Job.Status.QUEUED, 1)
    assert "boom" in job.log_tail


def test_a_child_whose_device_is_broken_ends_and_its_job_is_tried_again(
    alice: User, make_job: MakeJob, serving: Worker, child: Child
) -> None:
    job = claim(make_job, alice, serving)
    outcome = supervise(job, child, request(("break_device", 0)), on_message=ignore)
    assert (outcome.kind, outcome.message["status"]) == ("crashed", EXIT_DEVICE_BROKEN)
    assert not child.alive
    job.refresh_from_db()
    assert (job.status, job.crash_count) == (Job.Status.QUEUED, 1)
    assert "illegal memory access" in job.log_tail
    serving.refresh_from_db()
    assert serving.crash_streak == 1


def test_a_child_that_is_silent_for_too_long_has_crashed(
    alice: User, make_job: MakeJob, serving: Worker, child: Child, settings: Any
) -> None:
    settings.STUDIO_CHILD_SILENCE_SECONDS = 1.0
    job = claim(make_job, alice, serving)
    outcome = supervise(job, child, request(("hang", 0)), on_message=ignore)
    assert (outcome.kind, outcome.message["reason"]) == ("crashed", "silent")
    assert not child.alive


def test_a_job_that_somebody_else_has_ends_the_child(
    alice: User, make_job: MakeJob, serving: Worker, child: Child
) -> None:
    job = claim(make_job, alice, serving)
    GenerationJob.objects.filter(pk=job.pk).update(epoch=job.epoch + 1, step=5)
    outcome = supervise(job, child, request(("wait", 0)), on_message=ignore)
    assert outcome.kind == "lost"
    assert not child.alive
    job.refresh_from_db()
    assert (job.step, job.status) == (5, Job.Status.RUNNING)


def test_an_actor_that_notices_the_loss_itself_ends_the_run(
    alice: User, make_job: MakeJob, serving: Worker, child: Child
) -> None:
    def lose(message: dict[str, Any]) -> None:
        raise JobLost("gone")

    job = claim(make_job, alice, serving)
    outcome = supervise(job, child, request(("steps", 3), ("wait", 0)), on_message=lose)
    assert outcome.kind == "lost"
    assert not child.alive


def test_three_jobs_in_a_row_whose_children_crash_put_the_worker_aside(
    alice: User, make_job: MakeJob, serving: Worker
) -> None:
    def crash() -> None:
        job = claim(make_job, alice, serving)
        job.move(Job.Status.FAILED, from_=["running"], epoch=job.epoch, error_code="worker_lost")
        supervision._process.streak.note(serving, job, crashed=True)

    crash()
    crash()
    job = claim(make_job, alice, serving)
    supervision._process.streak.note(serving, job, crashed=False)  # one that went well
    job.fail("internal")
    for _ in range(2):
        crash()
    serving.refresh_from_db()
    assert (serving.crash_streak, serving.quarantined) == (2, False)
    crash()
    serving.refresh_from_db()
    assert serving.quarantined
    make_job(alice)
    assert jobs.claim(GenerationJob, serving) is None


def test_the_loop_goes_on_after_a_job_that_broke(
    alice: User, bob: User, make_job: MakeJob, serving: Worker
) -> None:
    broken, fine = make_job(alice), make_job(bob)
    done: list[Any] = []

    def run(job: GenerationJob) -> None:
        if job == broken:
            raise KeyError("oh")
        done.append(job)
        job.move(Job.Status.COMPLETED, from_=["running"], epoch=job.epoch)

    run_queue(GenerationJob, run)
    assert done == [fine]
    broken.refresh_from_db()
    assert (broken.status, broken.error_code) == (Job.Status.FAILED, "internal")
    assert not supervision.current_device().busy


def test_the_loop_ends_when_the_worker_shall(
    alice: User, make_job: MakeJob, serving: Worker
) -> None:
    for _ in range(3):
        make_job(alice)
    seen: list[Any] = []

    def run(job: GenerationJob) -> None:
        seen.append(job)
        supervision.stop_worker()
        job.settle_stopped("yield")

    run_queue(GenerationJob, run)
    assert len(seen) == 1
    assert GenerationJob.objects.queued().count() == 3


def test_an_outcome_says_whether_the_row_needs_anything_more() -> None:
    assert [Outcome(kind).settled for kind in ("done", "error", "stopped", "crashed", "lost")] == [
        False,
        False,
        False,
        True,
        True,
    ]

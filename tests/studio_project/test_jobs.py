"""Transitions of a job: who may make which, and what each one writes and tells."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from django.db import transaction
from django.utils import translation

from generation_app.models import GenerationJob
from studio_project import jobs
from studio_project.api import Problem
from studio_project.events import EVENT_SCHEMAS
from studio_project.jobs import ERRORS, InvalidTransition, Job, JobLost
from studio_project.models import User, Worker

MakeJob = Callable[..., GenerationJob]
MakeWorker = Callable[..., Worker]
Sent = list[tuple[list[str], dict[str, Any]]]
Status = Job.Status


def claimed(make_job: MakeJob, owner: User, worker: Worker, **fields: Any) -> GenerationJob:
    make_job(owner, **fields)
    job = jobs.claim(GenerationJob, worker)
    assert job is not None
    return job


@pytest.mark.parametrize("status", sorted(Job.FINAL))
def test_nothing_leads_out_of_a_final_state(status: str, alice: User, make_job: MakeJob) -> None:
    job = make_job(alice, status=status)
    for to, sources in Job.SOURCES.items():
        with pytest.raises(InvalidTransition):
            job.move(to, from_=sources)
    job.request_cancel()
    job.refresh_from_db()
    assert (job.status, job.version, job.cancel_requested) == (status, 1, False)


def test_a_step_that_no_rule_allows_is_a_mistake_of_the_caller(
    alice: User, make_job: MakeJob
) -> None:
    with pytest.raises(ValueError, match="no transition"):
        make_job(alice).move(Status.COMPLETED, from_=[Status.QUEUED])


def test_a_transition_raises_the_version_and_rings(
    alice: User, make_job: MakeJob, transactional_db: None, sent: Sent, rung: list[str]
) -> None:
    job = make_job(alice, status=Status.PENDING, queued_at=None)
    job.move(Status.QUEUED, from_=[Status.PENDING])
    assert job.version == 2
    assert job.queued_at is not None
    assert rung == ["generation"]
    groups, message = sent[0]
    assert groups == [f"user.{alice.pk}"]
    assert message["event"]["version"] == 2
    jsonschema.validate(message["event"], EVENT_SCHEMAS["generation_job.changed"])
    assert sent[-1][0] == ["studio"]
    jsonschema.validate(sent[-1][1]["event"], EVENT_SCHEMAS["queue.changed"])


def test_a_rolled_back_transition_tells_nobody(
    alice: User, make_job: MakeJob, transactional_db: None, sent: Sent, rung: list[str]
) -> None:
    job = make_job(alice, status=Status.PENDING)
    with pytest.raises(RuntimeError), transaction.atomic():
        job.move(Status.QUEUED, from_=[Status.PENDING])
        raise RuntimeError
    assert (sent, rung) == ([], [])


def test_a_dead_broker_neither_stops_nor_delays_a_job(
    alice: User,
    make_job: MakeJob,
    transactional_db: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries = []

    def broken() -> None:
        tries.append(1)
        raise ConnectionError("no Redis")

    monkeypatch.setitem(jobs.registry._bells, "generation", broken)
    monkeypatch.setattr(jobs.registry, "_quiet_until", 0.0)
    for _ in range(3):
        job = make_job(alice, status=Status.PENDING)
        job.move(Status.QUEUED, from_=[Status.PENDING])
    assert job.status == Status.QUEUED
    assert len(tries) == 1  # the next ones do not wait for a timeout as well


def test_of_two_transitions_one_wins(alice: User, make_job: MakeJob) -> None:
    job = make_job(alice)
    other = GenerationJob.objects.get(pk=job.pk)
    job.move(Status.CANCELED, from_=[Status.QUEUED])
    with pytest.raises(InvalidTransition):
        other.move(Status.CANCELED, from_=[Status.QUEUED])


def test_a_zombie_writes_nothing(alice: User, make_job: MakeJob, make_worker: MakeWorker) -> None:
    worker = make_worker()
    zombie = claimed(make_job, alice, worker)
    zombie.settle_crashed()
    alive = jobs.claim(GenerationJob, worker)
    assert alive is not None
    assert alive.epoch == zombie.epoch + 1
    zombie.epoch = alive.epoch - 1
    for write in (
        lambda: zombie.write_progress(step=9),
        zombie.renew_lease,
        lambda: zombie.fail("internal"),
        lambda: zombie.move(Status.COMPLETED, from_=[Status.RUNNING], epoch=zombie.epoch),
    ):
        with pytest.raises((JobLost, InvalidTransition)):
            write()
    alive.refresh_from_db()
    assert (alive.status, alive.step, alive.version) == (Status.RUNNING, 0, 4)


def test_progress_raises_the_version_and_drops_what_is_no_number(
    alice: User, make_job: MakeJob, make_worker: MakeWorker, transactional_db: None, sent: Sent
) -> None:
    job = claimed(make_job, alice, make_worker())
    sent.clear()
    job.write_progress(step=3, progress=math.nan, phase="denoising")
    assert (job.step, job.progress, job.phase, job.version) == (3, 0.0, "denoising", 3)
    assert sent[0][1]["event"]["step"] == 3


def test_a_heartbeat_moves_the_lease_and_not_the_version(
    alice: User, make_job: MakeJob, make_worker: MakeWorker
) -> None:
    job = claimed(make_job, alice, make_worker())
    before = job.lease_expires_at
    job.renew_lease(log_tail="so far so good")
    job.refresh_from_db()
    assert job.lease_expires_at >= before
    assert (job.version, job.log_tail) == (2, "so far so good")


@pytest.mark.parametrize("status", [Status.PENDING, Status.QUEUED, Status.PAUSED])
def test_what_no_worker_holds_is_canceled_at_once(
    status: str, alice: User, make_job: MakeJob
) -> None:
    job = make_job(alice, status=status)
    job.request_cancel()
    assert job.status == Status.CANCELED
    assert job.finished_at is not None


def test_a_running_job_is_asked_to_stop(
    alice: User, make_job: MakeJob, make_worker: MakeWorker
) -> None:
    job = claimed(make_job, alice, make_worker())
    job.request_cancel()
    assert (job.status, job.cancel_requested) == (Status.RUNNING, True)
    job.settle_stopped("yield")  # cancel goes before what the child says
    assert job.status == Status.CANCELED


@pytest.mark.parametrize(("how", "status"), [("pause", Status.PAUSED), ("yield", Status.QUEUED)])
def test_a_stopped_child_leaves_its_job_as_it_was_asked(
    how: str, status: str, alice: User, make_job: MakeJob, make_worker: MakeWorker
) -> None:
    job = claimed(make_job, alice, make_worker())
    job.settle_stopped(how)
    assert (job.status, job.worker, job.lease_expires_at) == (status, None, None)
    assert job.crash_count == 0


def test_a_child_that_was_to_keep_something_and_stops_had_nothing(
    alice: User, make_job: MakeJob, make_worker: MakeWorker
) -> None:
    job = claimed(make_job, alice, make_worker())
    job.settle_stopped("keep")
    assert job.status == Status.CANCELED


def test_three_crashes_without_progress_end_a_job(
    alice: User, make_job: MakeJob, make_worker: MakeWorker
) -> None:
    worker = make_worker()
    job = claimed(make_job, alice, worker)
    for crash in (1, 2):
        job.settle_crashed()
        assert (job.status, job.crash_count) == (Status.QUEUED, crash)
        job = jobs.claim(GenerationJob, worker)
    job.settle_crashed(log_tail="boom")
    assert (job.status, job.error_code, job.log_tail) == (Status.FAILED, "worker_lost", "boom")


def test_a_newer_checkpoint_forgives_earlier_crashes(
    alice: User,
    make_job: MakeJob,
    make_worker: MakeWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = make_worker()
    job = claimed(make_job, alice, worker)
    for step in (0, 0, 10, 10, 20):
        monkeypatch.setattr(GenerationJob, "checkpoint_step", lambda self, step=step: step)
        job.settle_crashed()
        assert job.status == Status.QUEUED
        job = jobs.claim(GenerationJob, worker)
    assert job.crash_count == 1


def test_a_crash_does_what_was_asked_for_instead_of_trying_again(
    alice: User, make_job: MakeJob, make_worker: MakeWorker
) -> None:
    worker = make_worker()
    job = claimed(make_job, alice, worker)
    job.request_cancel()
    job.settle_crashed()
    assert job.status == Status.CANCELED
    job = claimed(make_job, alice, worker)
    job.request_stop("pause")
    job.settle_crashed()
    assert job.status == Status.PAUSED


def test_an_error_is_a_sentence_in_the_readers_language(alice: User, make_job: MakeJob) -> None:
    job = make_job(alice, status=Status.FAILED, error_code="internal")
    error = job.error("en")
    assert error is not None
    assert error["code"] == "internal"
    assert str(job.pk) in error["hint"]
    with translation.override("fr"):
        assert job.error(None) is not None
    assert make_job(alice).error("en") is None
    unknown = make_job(alice, status=Status.FAILED, error_code="never_heard_of").error("en")
    assert unknown is not None
    assert unknown["message"] == str(ERRORS["internal"].message)


def test_only_the_owner_sees_a_job(alice: User, bob: User, make_job: MakeJob) -> None:
    job = make_job(alice)
    assert list(GenerationJob.objects.visible_to(alice)) == [job]
    assert not GenerationJob.objects.visible_to(bob).exists()


def test_the_cap_on_active_jobs_counts_what_waits_and_runs(
    alice: User, bob: User, make_job: MakeJob
) -> None:
    alice.max_active_jobs = 2
    alice.save()
    make_job(alice)
    make_job(alice, status=Status.COMPLETED)
    make_job(bob)
    with transaction.atomic():
        jobs.enforce_active_cap(alice)
    make_job(alice, status=Status.RUNNING)
    with pytest.raises(Problem) as refused, transaction.atomic():
        jobs.enforce_active_cap(alice)
    assert (refused.value.code, refused.value.status) == ("active_jobs_limit", 429)
    assert refused.value.headers["Retry-After"]

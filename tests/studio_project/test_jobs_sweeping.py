"""What the sweeper takes up, and what it leaves alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.utils import timezone

from generation_app.models import GenerationJob
from studio_project import jobs, storage
from studio_project.jobs import Job, sweeping
from studio_project.models import User, Worker

MakeJob = Callable[..., GenerationJob]
MakeWorker = Callable[..., Worker]


@pytest.fixture(autouse=True)
def _no_chores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "_chores", {})
    monkeypatch.setattr(sweeping, "_references", {})


def expire(job: GenerationJob) -> None:
    past = timezone.now() - timedelta(seconds=1)
    GenerationJob.objects.filter(pk=job.pk).update(lease_expires_at=past)


def test_a_job_whose_lease_has_ended_is_queued_again(
    alice: User, make_job: MakeJob, make_worker: MakeWorker
) -> None:
    worker = make_worker()
    make_job(alice)
    make_job(alice)
    lost, alive = jobs.claim(GenerationJob, worker), jobs.claim(GenerationJob, worker)
    assert lost is not None
    assert alive is not None
    expire(lost)
    assert jobs.sweep()["expired"] == 1
    lost.refresh_from_db()
    alive.refresh_from_db()
    assert (lost.status, lost.crash_count, lost.epoch) == (Job.Status.QUEUED, 1, 1)
    assert alive.status == Job.Status.RUNNING
    assert jobs.sweep()["expired"] == 0


def test_a_lease_that_was_renewed_at_the_last_moment_holds(
    alice: User, make_job: MakeJob, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_job(alice)
    job = jobs.claim(GenerationJob, make_worker())
    assert job is not None
    expire(job)

    def renew_first(self: GenerationJob, **options: Any) -> None:
        job.renew_lease()
        original(self, **options)

    original = GenerationJob.settle_crashed
    monkeypatch.setattr(GenerationJob, "settle_crashed", renew_first)
    assert jobs.sweep()["expired"] == 0
    job.refresh_from_db()
    assert (job.status, job.crash_count) == (Job.Status.RUNNING, 0)


def test_the_third_loss_without_progress_is_the_last(
    alice: User, make_job: MakeJob, make_worker: MakeWorker
) -> None:
    worker, job = make_worker(), make_job(alice)
    for _ in range(3):
        assert jobs.claim(GenerationJob, worker) == job
        expire(job)
        jobs.sweep()
    job.refresh_from_db()
    assert (job.status, job.error_code) == (Job.Status.FAILED, "worker_lost")


def test_what_nobody_owns_and_shall_be_canceled_is(alice: User, make_job: MakeJob) -> None:
    rows = [
        make_job(alice, status=status, cancel_requested=True)
        for status in (Job.Status.QUEUED, Job.Status.PAUSED, Job.Status.PENDING)
    ]
    kept = make_job(alice, status=Job.Status.PAUSED)
    assert jobs.sweep()["canceled"] == 3
    assert {GenerationJob.objects.get(pk=job.pk).status for job in rows} == {"canceled"}
    kept.refresh_from_db()
    assert kept.status == Job.Status.PAUSED


def test_it_rings_once_when_somebody_could_work(
    alice: User,
    make_job: MakeJob,
    make_worker: MakeWorker,
    transactional_db: None,
    rung: list[str],
) -> None:
    for _ in range(3):
        make_job(alice)
    jobs.sweep()
    assert rung == []  # nobody is there
    first, second = make_worker("first"), make_worker("second")
    jobs.sweep()
    assert rung == ["generation"]
    jobs.claim(GenerationJob, first)
    jobs.claim(GenerationJob, second)
    rung.clear()
    jobs.sweep()
    assert rung == []  # all are busy
    make_worker("third", queues=["training"])
    jobs.sweep()
    assert rung == []  # it does not serve this queue


def test_workers_that_went_are_marked_and_after_a_week_forgotten(
    alice: User, make_job: MakeJob, make_worker: MakeWorker
) -> None:
    old = timezone.now() - timedelta(minutes=5)
    gone = make_worker("gone", last_seen_at=old, warm=["m"])
    here = make_worker("here")
    ancient = make_worker("ancient", last_seen_at=timezone.now() - timedelta(days=8))
    job = make_job(alice, status=Job.Status.COMPLETED, worker=ancient)
    jobs.sweep()
    gone.refresh_from_db()
    here.refresh_from_db()
    job.refresh_from_db()
    assert (gone.state, gone.warm, here.state) == ("stopped", [], "idle")
    assert not Worker.objects.filter(pk=ancient.pk).exists()
    assert job.worker is None


def test_chores_are_done_and_one_that_breaks_stops_nothing(
    db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> int:
        raise KeyError

    monkeypatch.setattr(sweeping, "_chores", {})
    jobs.register_chore("broken", broken)
    jobs.register_chore("fine", lambda: 3)
    done = jobs.sweep()
    assert done["fine"] == 3
    assert "broken" not in done


def test_files_that_no_row_needs_go_after_a_day(db: None, settings: Any, tmp_path: Path) -> None:
    keys = [storage.new_key("things", number, suffix=".png") for number in range(4)]
    elsewhere = storage.new_key("others", suffix=".png")
    for key in [*keys, elsewhere]:
        storage.save(key, b"x")
    a_day_ago = time.time() - 90_000
    for key in [keys[0], keys[1], keys[2], elsewhere]:
        os.utime(Path(settings.MEDIA_ROOT) / key, (a_day_ago, a_day_ago))
    jobs.register_file_references("things", lambda found: {keys[0]} & set(found))
    jobs.register_file_references("things", lambda found: {keys[1]} & set(found))
    assert jobs.sweep_files() == 1
    assert [storage.exists(key) for key in keys] == [True, True, False, True]
    assert storage.exists(elsewhere)
    assert jobs.sweep_files() == 0


def test_the_command_does_one_round(
    alice: User, make_job: MakeJob, capsys: pytest.CaptureFixture[str]
) -> None:
    make_job(alice, status=Job.Status.PAUSED, cancel_requested=True)
    call_command("sweep", "--files")
    assert "canceled: 1" in capsys.readouterr().out

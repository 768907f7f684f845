"""The lease of a job is kept while the thread that does it is busy, and not for ever."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError
from django.utils import timezone

from generation_app.models import GenerationJob
from studio_project import jobs
from studio_project.jobs import Job
from studio_project.lease import LeaseKeeper
from studio_project.models import User, Worker
from studio_project.supervision import run_queue
from tests.studio_project.conftest import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

MakeJob = Callable[..., GenerationJob]


@pytest.fixture(autouse=True)
def _quick(settings: Any) -> None:
    settings.STUDIO_HEARTBEAT_SECONDS = 0.05


@pytest.fixture
def job(alice: User, make_job: MakeJob, serving: Worker) -> GenerationJob:
    make_job(alice)
    claimed = jobs.claim(GenerationJob, serving)
    assert claimed is not None
    return claimed


def renewed_since(job: GenerationJob, moment: Any) -> bool:
    return GenerationJob.objects.get(pk=job.pk).lease_expires_at > moment


def test_a_job_that_copies_files_for_long_keeps_its_lease(
    alice: User, make_job: MakeJob, serving: Worker
) -> None:
    made = make_job(alice)

    def run(claimed: GenerationJob) -> None:
        first = claimed.lease_expires_at
        wait_until(lambda: renewed_since(claimed, first))
        claimed.move(Job.Status.COMPLETED, from_=["running"], epoch=claimed.epoch)

    run_queue(GenerationJob, run)
    made.refresh_from_db()
    assert (made.status, made.lease_expires_at) == (Job.Status.COMPLETED, None)


def test_whoever_hangs_loses_the_job_all_the_same(job: GenerationJob, settings: Any) -> None:
    settings.STUDIO_CHILD_SILENCE_SECONDS = 0.1
    with LeaseKeeper(job) as keeper:
        wait_until(lambda: not keeper._thread.is_alive())
    settings.STUDIO_CHILD_SILENCE_SECONDS = 600.0
    past = timezone.now() - timedelta(seconds=1)
    GenerationJob.objects.filter(pk=job.pk).update(lease_expires_at=past)
    assert jobs.sweep()["expired"] == 1


def test_the_next_claim_is_not_kept_for_a_zombie(job: GenerationJob, serving: Worker) -> None:
    with LeaseKeeper(job) as keeper:
        job.settle_crashed()
        again = jobs.claim(GenerationJob, serving)
        assert again is not None
        job.refresh_from_db()
        wait_until(lambda: not keeper._thread.is_alive())
        later = GenerationJob.objects.get(pk=job.pk)
        assert later.lease_expires_at == again.lease_expires_at


def test_a_database_that_is_away_for_a_moment_does_not_end_it(
    job: GenerationJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, refusals = GenerationJob.renew_lease, iter(range(2))

    def away_at_first(self: GenerationJob, **fields: Any) -> None:
        if next(refusals, None) is not None:
            raise OperationalError("away")
        original(self, **fields)

    monkeypatch.setattr(GenerationJob, "renew_lease", away_at_first)
    first = job.lease_expires_at
    with LeaseKeeper(job):
        wait_until(lambda: renewed_since(job, first))

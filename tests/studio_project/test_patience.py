"""What a run makes of a database or a storage that is away, for a moment and for longer."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError
from django.db import OperationalError

from generation_app.models import GenerationJob
from studio_project import patience
from studio_project.child_process import Child
from studio_project.jobs import Job
from studio_project.models import User, Worker
from studio_project.supervision import run_queue, supervise
from tests.studio_project.test_supervision import MakeJob, claim, request

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("quick")]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience.random, "uniform", lambda low, high: 0.01)


@pytest.mark.parametrize(
    "refused",
    [
        [OperationalError("server closed the connection unexpectedly")] * 3,
        [OSError(errno.ESTALE, "Stale file handle"), EndpointConnectionError(endpoint_url="s3")],
    ],
    ids=["database", "storage"],
)
def test_what_is_away_for_a_moment_costs_nothing(
    refused: list[Exception],
    alice: User,
    make_job: MakeJob,
    serving: Worker,
    child: Child,
) -> None:
    job = claim(make_job, alice, serving)
    refusals = iter(refused)
    heard: list[str] = []

    def away_at_first(message: dict[str, Any]) -> None:
        if message["type"] == "checkpoint" and (error := next(refusals, None)) is not None:
            raise error
        heard.append(message["type"])

    script = request(("send", {"type": "checkpoint", "step": 1}))
    assert supervise(job, child, script, on_message=away_at_first).kind == "done"
    assert heard.count("checkpoint") == 1


def test_a_database_that_is_away_for_longer_than_the_lease_ends_the_run(
    alice: User,
    make_job: MakeJob,
    serving: Worker,
    child: Child,
    settings: Any,
) -> None:
    settings.STUDIO_LEASE_SECONDS = 0.3
    job = claim(make_job, alice, serving)

    def away(message: dict[str, Any]) -> None:
        raise OperationalError("server closed the connection unexpectedly")

    assert supervise(job, child, request(("steps", 1)), on_message=away).kind == "lost"
    assert not child.alive


def test_a_storage_that_is_away_for_longer_ends_the_run_and_the_job_is_tried_again(
    alice: User,
    make_job: MakeJob,
    serving: Worker,
    child: Child,
    settings: Any,
) -> None:
    settings.STUDIO_LEASE_SECONDS = 0.3
    job, tries = make_job(alice), 0

    def away(message: dict[str, Any]) -> None:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    def run(job: GenerationJob) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            supervise(job, child, request(("steps", 1)), on_message=away)
        job.move(Job.Status.COMPLETED, from_=["running"], epoch=job.epoch)

    run_queue(GenerationJob, run)
    job.refresh_from_db()
    assert not child.alive
    assert (tries, job.status, job.crash_count) == (2, Job.Status.COMPLETED, 1)

"""When waiting requests will be done: fair order, several workers, loading, and what is unknown."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from generation_app import services
from generation_app.foresight import Foresight
from generation_app.models import GenerationJob
from models_app.models import DiffusionModel
from studio_project.models import User
from studio_project.waiting import Waiting
from tests.factories import make_base, make_generation, make_worker

Api = Callable[[User], APIClient]


@pytest.fixture
def base(db: None) -> DiffusionModel:
    return make_base()


def queue(owner: User, base: DiffusionModel, seconds: float | None, **fields: Any) -> GenerationJob:
    now = timezone.now()
    values = {"status": "queued", "queued_at": now, "expected_seconds": seconds, **fields}
    return make_generation(owner, base, **values)


def etas(*jobs: GenerationJob) -> list[int | None]:
    foresight = Foresight(Waiting())
    return [foresight.eta_seconds(job) for job in jobs]


def test_what_is_ahead_in_fair_order_comes_on_top(
    alice: User, bob: User, base: DiffusionModel
) -> None:
    make_worker(warm=["Base"])
    first, second = queue(alice, base, 10), queue(alice, base, 20)
    other = queue(bob, base, 5)  # asked last, but Bob's turn is second
    assert etas(first, other, second) == [10, 15, 35]


def test_what_runs_comes_first_and_two_workers_share(
    alice: User, bob: User, base: DiffusionModel
) -> None:
    busy = make_worker("busy", warm=["Base"])
    running = make_generation(bob, base, status="running", worker=busy, eta_seconds=30)
    job = queue(alice, base, 10)
    assert etas(running, job) == [30, 40]
    make_worker("idle", warm=["Base"])
    assert etas(job) == [10]
    GenerationJob.objects.filter(pk=running.pk).update(
        eta_seconds=None, expected_seconds=50, started_at=timezone.now() - timedelta(seconds=20)
    )
    running.refresh_from_db()
    assert etas(running) == [30]


def test_a_model_that_is_not_ready_is_loaded_once(alice: User, base: DiffusionModel) -> None:
    make_worker(warm=["Other"])
    jobs = [queue(alice, base, 10, expected_load_seconds=7) for _ in range(2)]
    assert etas(*jobs) == [17, 27]


def test_nothing_is_promised_that_nobody_knows(alice: User, base: DiffusionModel) -> None:
    job = queue(alice, base, 10)
    assert etas(job) == [None]  # no worker
    worker = make_worker(memory_bytes=10, warm=["Base"])
    GenerationJob.objects.filter(pk=job.pk).update(required_bytes=11)
    assert etas(job) == [None]  # none that could
    worker.memory_bytes = 100
    worker.save()
    assert etas(job) == [10]
    job.waiting_reason = "device_busy"
    assert etas(job) == [None]
    unknown = queue(alice, base, None)
    assert etas(unknown) == [None]


def test_unknown_jobs_ahead_count_as_the_usual_one(
    alice: User, bob: User, base: DiffusionModel
) -> None:
    make_worker(warm=["Base"])
    queue(alice, base, None)
    assert etas(queue(bob, base, 10)) == [20]


def test_it_is_told_before_and_after_a_request_is_sent(
    api: Api, alice: User, bob: User, base: DiffusionModel
) -> None:
    worker = make_worker(warm=["Base"])
    client, body = api(alice), {"model": "Base", "num_inference_steps": 8}
    ended = timezone.now()
    make_generation(
        bob,
        base,
        status="completed",
        worker=worker,
        started_at=ended - timedelta(seconds=2),
        finished_at=ended,
        metrics={"seconds": 2.0, "denoise_seconds": 2.0},
    )
    alone = client.post("/api/generate/estimate", body).json()
    assert (alone["seconds"], alone["eta_seconds"], alone["basis"]) == (4.0, 4.0, "size")
    services.submit_generation(bob, mode="text-to-image", body={"model": "Base"})
    behind = client.post("/api/generate/estimate", body).json()
    assert (behind["position"], behind["eta_seconds"]) == (2, 6.0)
    job = client.post("/api/generate/text-to-image", body).json()
    assert (job["position"], job["eta_seconds"]) == (2, 6)
    assert GenerationJob.objects.get(pk=job["id"]).expected_seconds == pytest.approx(4.0)

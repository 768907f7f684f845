"""When waiting requests will be done: fair order, several workers, loading, and what is unknown."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from generation_app import services
from generation_app.foresight import Foresight
from generation_app.history import MOST, finished, foretell, work_of
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


def test_the_first_steps_are_not_taken_for_the_pace(
    alice: User, bob: User, base: DiffusionModel
) -> None:
    begun = timezone.now() - timedelta(seconds=5)
    running = make_generation(
        bob, base, status="running", worker=make_worker(warm=["Base"]), eta_seconds=80, step=2,
        expected_seconds=15, started_at=begun,
    )  # fmt: skip
    assert etas(running, queue(alice, base, 10)) == [10, 20]
    running.step = 5
    running.save()
    assert etas(running, queue(bob, base, 10)) == [80, 100]


def joinable(owner: User, base: DiffusionModel, key: str = "x", **fields: Any) -> GenerationJob:
    """Make a request that takes two seconds alone and adds one to a batch."""
    return queue(owner, base, 2, expected_joint_seconds=1, joint_key=key, **fields)


def test_ten_that_may_share_a_batch_are_eight_and_two(
    alice: User, bob: User, base: DiffusionModel
) -> None:
    make_worker(warm=["Base"])
    jobs = [joinable(owner, base) for _ in range(5) for owner in (alice, bob)]
    assert etas(*jobs) == [8] * 8 + [10] * 2
    other = joinable(alice, base, key="y")  # its turn is last, and it is alone
    assert etas(*jobs, other) == [8] * 8 + [10] * 2 + [12]
    # Company is no reason for another worker to stay idle.
    make_worker("idle", warm=["Base"])
    assert etas(*jobs) == [6] * 6 + [3] * 3 + [5]


def test_who_comes_along_out_of_turn_is_foreseen(
    alice: User, bob: User, base: DiffusionModel
) -> None:
    make_worker(warm=["Base"])
    first, between, along = (joinable(alice, base, key) for key in "xyx")
    assert etas(first, between, along) == [2, 4, 2]
    GenerationJob.objects.filter(pk=along.pk).update(crash_count=1)
    assert etas(first, between, along) == [2, 4, 6]
    # Not at the cost of more than somebody's patience.
    GenerationJob.objects.update(crash_count=0, expected_seconds=20, expected_joint_seconds=10)
    assert etas(first, between, along) == [20, 40, 60]


def test_a_running_batch_is_done_when_all_of_it_is(alice: User, base: DiffusionModel) -> None:
    worker, begun = make_worker(warm=["Base"]), timezone.now() - timedelta(seconds=1)
    for _ in range(4):
        joinable(alice, base, status="running", worker=worker, started_at=begun)
    assert etas(queue(alice, base, 10)) == [13]


def test_ten_recorded_requests_at_once_are_foretold_by_what_was_before(
    alice: User, base: DiffusionModel
) -> None:
    """Of each round but the first two the forecast knows the earlier ones, as on the site."""
    make_worker(warm=["Base"])
    rows = json.loads(Path(__file__).with_name("recorded_rounds.json").read_text())
    samples = [finished(row["parameters"], row["metrics"], row["wall_seconds"]) for row in rows]
    errors: dict[bool, list[float]] = {True: [], False: []}
    for number in range(2, 1 + max(row.get("round", 0) for row in rows)):
        of_round = [index for index, row in enumerate(rows) if row.get("round") == number]
        before = [one for one in reversed(samples[: of_round[0]]) if one is not None]
        told = foretell(before[:MOST], work_of(rows[of_round[0]]["parameters"]))
        assert told is not None and told.joint_seconds < told.seconds
        parts = {"expected_joint_seconds": told.joint_seconds}
        jobs = [queue(alice, base, told.seconds, **parts) for _ in of_round]
        ended = sorted(rows[index]["done_in"] for index in of_round)
        for together in (True, False):
            GenerationJob.objects.update(joint_key="x" if together else "")
            for eta, real in zip(etas(*jobs), ended, strict=True):
                assert eta is not None
                errors[together].append(abs(eta - real) / real)
        GenerationJob.objects.all().delete()
    assert len(errors[True]) >= 60
    assert median(errors[True]) <= 0.3, sorted(errors[True])
    assert median(errors[True]) < median(errors[False]) / 1.5


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
    row = GenerationJob.objects.get(pk=job["id"])
    assert (row.expected_seconds, row.expected_joint_seconds) == (pytest.approx(4.0),) * 2
    # What may share a batch with the one that is asked for is done with it.
    GenerationJob.objects.filter(pk=row.pk).update(expected_joint_seconds=3)
    joint = client.post("/api/generate/estimate", body).json()
    assert (joint["position"], joint["eta_seconds"]) == (3, 9.0)

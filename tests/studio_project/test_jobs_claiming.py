"""Who gets which job next."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone
from hypothesis import HealthCheck, given, settings, strategies

from generation_app.models import GenerationJob
from studio_project import jobs
from studio_project.jobs import Job
from studio_project.jobs.workers import waiting_reason
from studio_project.models import User, Worker, seen_since
from studio_project.waiting import Waiting
from tests.factories import make_base, make_generation

MakeJob = Callable[..., GenerationJob]
MakeWorker = Callable[..., Worker]
GIBIBYTE = 1024**3


def complete(job: GenerationJob) -> None:
    job.move(Job.Status.COMPLETED, from_=[Job.Status.RUNNING], epoch=job.epoch)


def test_a_claim_gives_an_epoch_a_lease_and_a_start(
    alice: User, make_job: MakeJob, make_worker: MakeWorker
) -> None:
    queued, worker = make_job(alice), make_worker()
    job = jobs.claim(GenerationJob, worker)
    assert job == queued
    assert (job.status, job.epoch, job.version, job.worker) == ("running", 1, 2, worker)
    assert job.started_at is not None
    left = job.lease_expires_at - timezone.now()
    assert timedelta(seconds=40) < left < timedelta(seconds=46)
    assert jobs.claim(GenerationJob, worker) is None


def test_a_newcomer_goes_before_the_21st_job_of_another(
    alice: User, bob: User, make_job: MakeJob, make_worker: MakeWorker
) -> None:
    for _ in range(20):
        make_job(alice)
    worker = make_worker()
    first = jobs.claim(GenerationJob, worker)
    late = make_job(bob)
    second = jobs.claim(GenerationJob, worker)
    assert first is not None
    assert first.owner == alice
    assert second == late


def test_with_equally_many_running_the_turn_goes_round(
    alice: User, bob: User, make_job: MakeJob, make_worker: MakeWorker
) -> None:
    worker = make_worker()
    for owner in (alice, alice, alice, bob, bob, bob):
        make_job(owner)
    order = []
    for _ in range(6):
        job = jobs.claim(GenerationJob, worker)
        assert job is not None
        order.append(job.owner)
        complete(job)
    assert order == [alice, bob] * 3


def test_priority_counts_among_ones_own_jobs_only(
    alice: User, bob: User, make_job: MakeJob, make_worker: MakeWorker
) -> None:
    now = timezone.now()
    make_job(alice, queued_at=now - timedelta(minutes=5))
    urgent = make_job(alice, priority=5, queued_at=now)
    other = make_job(bob, priority=0, queued_at=now - timedelta(minutes=3))
    worker = make_worker()
    assert jobs.claim(GenerationJob, worker) == urgent
    assert jobs.claim(GenerationJob, worker) == other


def test_a_job_that_lost_its_worker_keeps_its_turn(
    alice: User, bob: User, make_job: MakeJob, make_worker: MakeWorker
) -> None:
    worker = make_worker()
    interrupted = make_job(alice)
    make_job(alice)
    make_job(bob)
    job = jobs.claim(GenerationJob, worker)
    assert job == interrupted
    started_at = job.started_at
    job.settle_stopped("yield")
    again = jobs.claim(GenerationJob, worker)
    assert again == interrupted
    assert again.started_at == started_at


def test_positions_are_the_order_in_which_jobs_start(
    alice: User, bob: User, staff: User, make_job: MakeJob, make_worker: MakeWorker
) -> None:
    for owner, priority in ((alice, 0), (alice, 3), (alice, 0), (bob, 0), (bob, 1), (staff, 0)):
        make_job(owner, priority=priority)
    order = jobs.queue_order(GenerationJob)
    assert [GenerationJob.objects.get(pk=pk).position() for pk in order] == [1, 2, 3, 4, 5, 6]
    worker = make_worker()
    started = []
    while job := jobs.claim(GenerationJob, worker):
        started.append(job.pk)
        assert job.position() is None
    assert started == order


def test_a_device_gets_only_what_it_can_hold(
    alice: User, make_job: MakeJob, make_worker: MakeWorker
) -> None:
    make_job(alice, required_bytes=12 * GIBIBYTE)
    small = make_job(alice, required_bytes=2 * GIBIBYTE)
    worker = make_worker(device="cuda:0")
    assert jobs.claim(GenerationJob, worker, GIBIBYTE) is None
    assert jobs.claim(GenerationJob, worker) == small
    assert jobs.claim(GenerationJob, worker) is None


def test_a_job_that_needs_several_devices_waits_for_a_worker_that_has_them(
    alice: User, make_job: MakeJob, make_worker: MakeWorker
) -> None:
    job = make_job(alice, required_devices=2, required_bytes=4 * GIBIBYTE)
    single = make_worker("single", device="cuda:0", memory_bytes=8 * GIBIBYTE)
    assert jobs.claim(GenerationJob, single) is None
    assert waiting_reason(job) == "no_worker"
    assert Waiting().reason(job) == "no_worker"
    # A GPU that is alone cannot do it either, so two processors may.
    make_worker("processors", device="cpu+cpu")
    assert waiting_reason(job) == "behind_jobs"
    assert Waiting().reason(job) == "behind_jobs"
    pair = make_worker("pair", device="cuda:1+cuda:2", memory_bytes=8 * GIBIBYTE)
    assert jobs.claim(GenerationJob, Worker.objects.get(name="processors")) is None
    assert jobs.claim(GenerationJob, pair) == job


def test_large_models_are_left_to_a_living_gpu_that_can_hold_them(
    alice: User, make_job: MakeJob, make_worker: MakeWorker
) -> None:
    large = make_job(alice, required_bytes=4 * GIBIBYTE)
    small = make_job(alice, required_bytes=GIBIBYTE // 4)
    cpu = make_worker("cpu", memory_bytes=64 * GIBIBYTE)
    gpu = make_worker("gpu", device="cuda:0", memory_bytes=8 * GIBIBYTE)
    assert jobs.claim(GenerationJob, cpu) == small
    assert jobs.claim(GenerationJob, cpu) is None
    too_large = make_job(alice, required_bytes=16 * GIBIBYTE)
    assert jobs.claim(GenerationJob, cpu) == too_large
    Worker.objects.filter(pk=gpu.pk).update(last_seen_at=seen_since(300))
    assert jobs.claim(GenerationJob, cpu) == large


@pytest.mark.parametrize(
    "fields", [{"quarantined": True}, {"state": "refusing"}, {"state": "stopped"}]
)
def test_a_worker_that_is_put_aside_gets_nothing(
    fields: dict[str, Any], alice: User, make_job: MakeJob, make_worker: MakeWorker
) -> None:
    make_job(alice)
    assert jobs.claim(GenerationJob, make_worker(**fields)) is None


def test_a_job_that_shall_be_canceled_is_not_started(
    alice: User, make_job: MakeJob, make_worker: MakeWorker
) -> None:
    make_job(alice, cancel_requested=True)
    assert jobs.claim(GenerationJob, make_worker()) is None


def test_a_job_whose_model_is_ready_goes_first_for_a_while(
    alice: User, bob: User, make_job: MakeJob, make_worker: MakeWorker
) -> None:
    warm, other = make_base("Warm"), make_base("Other")
    worker = make_worker(warm=["Warm"])
    cold = make_job(alice, base_model=other, expected_load_seconds=5.0)
    ready = [make_job(bob, base_model=warm, expected_seconds=4.0) for _ in range(2)]
    later = make_job(bob, base_model=other, expected_seconds=4.0)
    claimed = jobs.claim(GenerationJob, worker)
    assert claimed == ready[0]
    cold.refresh_from_db()
    later.refresh_from_db()
    assert cold.passed_over_at is not None
    assert (cold.version, later.passed_over_at) == (1, None)
    first_passed = cold.passed_over_at
    complete(claimed)
    claimed = jobs.claim(GenerationJob, worker)
    assert claimed == ready[1]
    cold.refresh_from_db()
    assert cold.passed_over_at == first_passed
    complete(claimed)
    make_job(bob, base_model=warm, expected_seconds=4.0)
    waited = timezone.now() - timedelta(seconds=27)
    GenerationJob.objects.filter(pk=cold.pk).update(passed_over_at=waited)
    assert jobs.claim(GenerationJob, worker) == cold


def test_jobs_alike_are_claimed_together_and_shared_between_workers(
    alice: User, bob: User, staff: User, make_worker: MakeWorker
) -> None:
    worker = make_worker()
    queued = {"status": "queued", "joint_key": "k"}
    first, second = (make_generation(owner, **queued) for owner in (alice, bob))
    crashed = make_generation(staff, crash_count=1, **queued)
    other = make_generation(staff, status="queued")
    claimed = jobs.claim_together(GenerationJob, worker)
    assert claimed == [first, second]
    for job in claimed:
        assert (job.status, job.epoch, job.worker) == ("running", 1, worker)
        assert job.lease_expires_at is not None
    assert jobs.claim_together(GenerationJob, worker) == [crashed]
    assert jobs.claim_together(GenerationJob, worker) == [other]
    assert jobs.claim_together(GenerationJob, worker) == []
    alike = [make_generation(owner, **queued) for owner in (alice, bob, staff)]
    another = make_worker("another")
    assert len(jobs.claim_together(GenerationJob, worker)) == 2
    assert len(jobs.claim_together(GenerationJob, another)) == 1
    assert GenerationJob.objects.running().filter(pk__in=[job.pk for job in alike]).count() == 3


def test_why_a_job_waits(
    alice: User, make_job: MakeJob, make_worker: MakeWorker, rung: list[str]
) -> None:
    job = make_job(alice, status="pending", required_bytes=4 * GIBIBYTE)
    job.move("queued", from_=["pending"])
    assert job.waiting_reason == "no_worker"
    worker = make_worker(device="cuda:0")
    jobs.sweep()
    job.refresh_from_db()
    assert job.waiting_reason == "behind_jobs"
    assert jobs.note_device_busy(GenerationJob, worker, 4 * GIBIBYTE) == 0
    assert jobs.note_device_busy(GenerationJob, worker, GIBIBYTE) == 4 * GIBIBYTE
    job.refresh_from_db()
    assert job.waiting_reason == "device_busy"
    version = job.version
    jobs.sweep()
    job.refresh_from_db()
    assert (job.waiting_reason, job.version) == ("device_busy", version)
    claimed = jobs.claim(GenerationJob, worker)
    assert claimed is not None
    assert claimed.waiting_reason == ""


@pytest.mark.django_db(transaction=True)
def test_many_workers_claim_each_job_once_and_share_fairly(
    make_worker: MakeWorker, make_job: MakeJob, alice: User, bob: User
) -> None:
    for owner in [alice] * 30 + [bob] * 2:
        make_job(owner)
    workers = [make_worker(f"w{number}") for number in range(6)]
    claims: list[tuple[Any, int]] = []
    start = threading.Barrier(len(workers))

    def work(worker: Worker) -> None:
        try:
            start.wait()
            while job := jobs.claim(GenerationJob, worker):
                claims.append((job.pk, job.owner_id))
        finally:
            connection.close()

    threads = [threading.Thread(target=work, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({pk for pk, _owner in claims}) == len(claims) == 32
    assert set(GenerationJob.objects.values_list("epoch", flat=True)) == {1}
    by_start = GenerationJob.objects.order_by("turn_at").values_list("owner_id", flat=True)
    assert list(by_start[:4]).count(bob.pk) == 2


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    steps=strategies.lists(
        strategies.sampled_from(
            ["submit", "claim", "crash", "yield", "finish", "cancel", "zombie"]
        ),
        max_size=25,
    )
)
def test_no_sequence_of_events_loses_or_doubles_a_job(
    steps: list[str], alice: User, make_job: MakeJob, make_worker: MakeWorker
) -> None:
    GenerationJob.objects.all().delete()
    Worker.objects.all().delete()
    worker, running, stale = make_worker(), [], []
    submitted = 0
    for step in steps:
        if step == "submit":
            make_job(alice)
            submitted += 1
        elif step == "claim":
            job = jobs.claim(GenerationJob, worker)
            if job is not None:
                running.append(job)
        elif step == "cancel" and (first := GenerationJob.objects.live().first()):
            first.request_cancel()
        elif step == "zombie":
            for job, epoch in stale:
                assert not GenerationJob.objects.filter(
                    pk=job.pk, epoch=epoch, status="running"
                ).exists()
        elif running:
            job = running.pop()
            stale.append((job, job.epoch))
            if step == "crash":
                job.settle_crashed()
            elif step == "yield":
                job.settle_stopped("yield")
            elif step == "finish":
                complete(job)
    rows = GenerationJob.objects.all()
    assert rows.count() == submitted
    assert rows.running().count() == len(running)
    assert set(rows.running().values_list("pk", flat=True)) == {job.pk for job in running}
    for job in rows:
        assert (job.lease_expires_at is not None) == (job.status == "running")
        assert (job.finished_at is not None) == job.is_final

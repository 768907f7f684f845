"""One worker: its row, its refusals, and how it hears of work."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import dramatiq
import psutil
import pytest
from django.core.management import call_command
from django.db import transaction
from dramatiq.brokers.stub import StubBroker

from generation_app.models import GenerationJob
from studio_project import jobs, site_marker, storage, supervision, worker_process
from studio_project.devices import DeviceInfo
from studio_project.jobs import Job
from studio_project.management.commands import worker
from studio_project.models import User, Worker, seen_since
from studio_project.worker_process import Listener, WorkerProcess
from tests.studio_project.conftest import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

MakeJob = Callable[..., GenerationJob]
CPU = DeviceInfo("cpu", "A processor", 8 * 1024**3)


class StubListener:
    """Remembers whether it shall listen."""

    wanted: bool | None = None

    def listen(self, wanted: bool) -> None:
        self.wanted = wanted


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerProcess]:
    """Be a worker of a site that has marked its storage."""
    site_marker.write()
    made = WorkerProcess(CPU)
    supervision.serve_as(made.row)
    yield made
    supervision._process.worker = None


@pytest.fixture
def listener() -> Iterator[tuple[Listener, StubBroker]]:
    broker = StubBroker(middleware=[])
    made = Listener(broker, {"training", "generation"})
    yield made, broker
    if made.workers:
        made.stop(5000)
    broker.close()


def test_it_says_who_and_where_it_is(process: WorkerProcess) -> None:
    row = Worker.objects.get()
    assert row.name.endswith("-cpu")
    assert (row.pid, row.device, row.device_name) == (os.getpid(), "cpu", "A processor")
    assert row.queues == ["training", "generation", "default"]
    assert (row.state, row.code_version) == ("starting", site_marker.code_version())


def test_a_restart_takes_its_row_and_what_the_dead_process_left(
    process: WorkerProcess, alice: User, make_job: MakeJob
) -> None:
    make_job(alice)
    job = jobs.claim(GenerationJob, process.row)
    assert job is not None
    Worker.objects.update(pid=2**22 + 1, quarantined=True, crash_streak=3)
    again = WorkerProcess(CPU)
    assert again.row.pk == process.row.pk
    assert (again.row.quarantined, again.row.crash_streak) == (False, 0)
    job.refresh_from_db()
    assert (job.status, job.crash_count) == (Job.Status.QUEUED, 1)


def test_two_workers_of_one_device_have_two_names(
    process: WorkerProcess, alice: User, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_job(alice)
    job = jobs.claim(GenerationJob, process.row)
    assert job is not None
    Worker.objects.update(pid=1)
    monkeypatch.setattr(
        worker_process.psutil.Process, "cmdline", lambda self: ["python", "manage.py", "worker"]
    )
    second = WorkerProcess(CPU)
    assert second.row.name == f"{process.row.name}-2"
    job.refresh_from_db()
    assert job.status == Job.Status.RUNNING
    assert psutil.pid_exists(1)


@pytest.mark.parametrize("pid", [os.getpid(), 2**22 + 1], ids=["like this one", "unknown here"])
def test_a_container_of_the_same_name_keeps_its_row_while_its_heart_beats(
    pid: int, process: WorkerProcess, alice: User, make_job: MakeJob
) -> None:
    make_job(alice)
    job = jobs.claim(GenerationJob, process.row)
    assert job is not None
    Worker.objects.update(machine="another", pid=pid)
    second = WorkerProcess(CPU)
    assert second.row.name == f"{process.row.name}-2"
    job.refresh_from_db()
    assert job.status == Job.Status.RUNNING
    second.row.delete()
    Worker.objects.update(last_seen_at=seen_since(60.0))
    third = WorkerProcess(CPU)
    assert third.row.pk == process.row.pk
    job.refresh_from_db()
    assert job.status == Job.Status.QUEUED


def test_two_that_start_at_once_take_two_names(
    process: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, begin = process.row.name, transaction.atomic
    faster = iter([process._fields("here") | {"name": name, "pid": 1}])

    def begin_too_late() -> Any:
        for fields in faster:
            Worker.objects.create(**fields)
        return begin()

    process.row.delete()
    monkeypatch.setattr(worker_process.transaction, "atomic", begin_too_late)
    assert WorkerProcess(CPU).row.name == f"{name}-2"
    assert Worker.objects.get(name=name).pid == 1


def test_two_that_find_a_dead_ones_row_at_once_take_two_names(
    process: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = process.row.name
    Worker.objects.update(pid=2**22 + 1)

    def take_meanwhile(row: Worker) -> bool:
        Worker.objects.filter(pk=row.pk).update(pid=1)
        return False

    monkeypatch.setattr(worker_process, "_is_living", take_meanwhile)
    assert WorkerProcess(CPU).row.name == f"{name}-2"
    assert Worker.objects.get(name=name).pid == 1


def test_who_lost_its_row_to_another_takes_a_new_one(process: WorkerProcess) -> None:
    Worker.objects.update(machine="another")
    process._beat(StubListener())  # type: ignore[arg-type]
    assert process.row.name.endswith("-cpu-2")
    assert supervision.current_worker().pk == process.row.pk
    assert Worker.objects.count() == 2


def test_a_heartbeat_says_that_it_lives_and_what_is_warm(process: WorkerProcess) -> None:
    ears = StubListener()
    supervision.note_warm(["b", "a"])
    process._beat(ears)  # type: ignore[arg-type]
    row = Worker.objects.get()
    assert (row.state, row.refusal, row.warm, ears.wanted) == ("idle", "", ["a", "b"], True)
    assert row.last_seen_at >= row.started_at


@pytest.mark.parametrize("reason", ["storage", "code_version", "quarantined"])
def test_it_takes_no_jobs_and_says_why_until_the_reason_is_gone(
    reason: str, process: WorkerProcess, alice: User, make_job: MakeJob
) -> None:
    make_job(alice)
    ears = StubListener()
    if reason == "storage":
        storage.delete(site_marker.KEY)
    elif reason == "code_version":
        storage.save(site_marker.KEY, b'{"code_version": "0.0.0+other"}')
    else:
        Worker.objects.update(quarantined=True)
    process._beat(ears)  # type: ignore[arg-type]
    row = Worker.objects.get()
    assert (row.state, row.refusal, ears.wanted) == ("refusing", reason, False)
    assert jobs.claim(GenerationJob, row) is None
    site_marker.write()
    Worker.objects.update(quarantined=False)
    supervision._process.streak._jobs.add(uuid4())
    process._beat(ears)  # type: ignore[arg-type]
    row.refresh_from_db()
    assert (row.state, row.refusal, ears.wanted) == ("idle", "", True)
    if reason == "quarantined":
        assert supervision._process.streak._jobs == set()


def test_a_row_that_somebody_deleted_comes_back(process: WorkerProcess) -> None:
    Worker.objects.all().delete()
    process._beat(StubListener())  # type: ignore[arg-type]
    assert Worker.objects.get().pk == supervision.current_worker().pk


def test_a_job_whose_bell_was_lost_is_found_by_the_heartbeat(
    process: WorkerProcess, alice: User, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()
    actor = dramatiq.get_broker().actors["generate"]
    monkeypatch.setattr(actor, "fn", answered.set)
    ears: Any = StubListener()
    process._beat(ears)
    assert not answered.is_set()
    make_job(alice)
    process._beat(ears)
    wait_until(answered.is_set)


def test_a_bell_is_heard_at_once_and_one_queue_does_not_wait_for_another(
    listener: tuple[Listener, StubBroker],
) -> None:
    ears, broker = listener
    long_work, began, heard = threading.Event(), threading.Event(), threading.Event()

    @dramatiq.actor(queue_name="training", broker=broker)
    def train() -> None:
        began.set()
        long_work.wait(20)

    @dramatiq.actor(queue_name="generation", broker=broker)
    def generate() -> None:
        heard.set()

    ears.listen(True)
    train.send()
    train.send()
    wait_until(began.is_set)
    generate.send()
    wait_until(heard.is_set)
    assert ears.queue_prefetch == 1
    assert set(ears.consumers) == {"training", "generation"}  # no delay queues
    long_work.set()


def test_who_takes_no_jobs_leaves_the_bell_to_others(
    listener: tuple[Listener, StubBroker],
) -> None:
    ears, broker = listener
    heard = threading.Event()

    @dramatiq.actor(queue_name="generation", broker=broker)
    def generate() -> None:
        heard.set()

    ears.listen(False)
    assert not ears.workers
    ears.listen(True)
    ears.listen(False)
    wait_until(lambda: all(one.paused_event.is_set() for one in ears.consumers.values()))
    generate.send()
    assert broker.queues["generation"].qsize() == 1
    assert not heard.is_set()
    ears.listen(True)
    wait_until(heard.is_set)


@pytest.mark.parametrize(("budget_mb", "expected"), [(0, 8 * 1024**3), (30, 30 * 10**6)])
def test_a_budget_of_memory_is_kept_to(
    budget_mb: int, expected: int, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "chosen_devices", lambda wanted: [CPU])
    monkeypatch.setattr(WorkerProcess, "run", lambda self: 0)
    settings.STUDIO_DEVICE_MEMORY_MB = budget_mb
    with pytest.raises(SystemExit):
        call_command("worker")
    row = Worker.objects.get()
    assert row.memory_bytes == expected
    supervision.serve_as(row)
    free = supervision.current_device().free_bytes("generation")
    assert free == (expected if budget_mb else None)


def test_a_heartbeat_finds_who_waits_for_room(
    process: WorkerProcess, alice: User, make_job: MakeJob, settings: Any
) -> None:
    settings.STUDIO_DEVICE_MEMORY_MB = 1
    supervision.serve_as(process.row)
    device = supervision.current_device()
    device.take("training", lambda free: 1, lambda job: 7 * 1024**3)
    job = make_job(alice, required_bytes=2 * 1024**3)
    process._beat(StubListener())  # type: ignore[arg-type]
    job.refresh_from_db()
    assert job.waiting_reason == "device_busy"
    assert device.is_wanted("training")
    job.request_cancel()
    process._beat(StubListener())  # type: ignore[arg-type]
    assert not device.is_wanted("training")

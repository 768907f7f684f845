"""Which jobs a worker may have, and the guarded claim.

Claims of one queue are made one after the other, so that two workers that wake up together do not
both serve the same user. In which order users are served is told in ``ordering``.
"""

from __future__ import annotations

import zlib
from typing import TypeVar
from uuid import UUID

from django.db import connection, transaction
from django.db.models import F, Min, Q
from django.db.models.functions import Coalesce, Now

from studio_project.jobs.base import Job, JobQuerySet, lease_end
from studio_project.jobs.ordering import AGE, turns
from studio_project.jobs.registry import announce_queue
from studio_project.jobs.workers import live_workers
from studio_project.models import Worker

CPU_LEAVES_BYTES = 1024**3

JobT = TypeVar("JobT", bound=Job)


def claimable(job_class: type[JobT], worker: Worker, free_bytes: int | None = None) -> JobQuerySet:
    """The queued jobs that this worker may claim, in no particular order.

    Args:
        job_class: The kind of job.
        worker: Who asks. One that refuses work or is quarantined may claim nothing.
        free_bytes: What its device can hold at the moment, if that is less than its memory.
    """
    rows: JobQuerySet = job_class.objects.queued().filter(cancel_requested=False)
    if worker.quarantined or worker.state in (Worker.State.REFUSING, Worker.State.STOPPED):
        return rows.none()
    if free_bytes is not None:
        rows = rows.filter(required_bytes__lte=free_bytes)
    elif worker.memory_bytes:
        rows = rows.filter(required_bytes__lte=worker.memory_bytes)
    rows = rows.filter(required_devices__lte=worker.num_devices)
    if worker.is_cpu:
        rows = _without_what_gpus_do(rows, job_class.queue_name)
    return rows


def _without_what_gpus_do(rows: JobQuerySet, queue_name: str) -> JobQuerySet:
    """Leaves large jobs to a living GPU worker that can hold them."""
    large = Q(required_bytes__gt=CPU_LEAVES_BYTES)
    for gpu in live_workers(queue_name):
        if gpu.is_cpu:
            continue
        held = large & Q(required_devices__lte=gpu.num_devices)
        if gpu.memory_bytes:
            held &= Q(required_bytes__lte=gpu.memory_bytes)
        rows = rows.exclude(held)
    return rows


def claim(job_class: type[JobT], worker: Worker, free_bytes: int | None = None) -> JobT | None:
    """Takes the next job for a worker: running, under a new epoch, with a lease.

    Args:
        job_class: The kind of job.
        worker: Who will do it.
        free_bytes: See ``claimable``.

    Returns:
        The job, or ``None`` if there is nothing that this worker may take.
    """
    waiting = claimable(job_class, worker, free_bytes)
    if not waiting.exists():
        return None
    with transaction.atomic():
        _one_at_a_time(job_class)
        for turn in turns(job_class, waiting):
            job_id = _take(job_class, waiting.filter(owner_id=turn.owner_id), worker)
            if job_id is not None:
                job = job_class.objects.get(pk=job_id)
                job.announce()
                announce_queue()
                return job
    return None


def _one_at_a_time(job_class: type[Job]) -> None:
    """Lets the claims of one queue wait for each other; on SQLite ``BEGIN IMMEDIATE`` did."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            number = zlib.crc32(job_class._meta.db_table.encode())
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [number])


def _take(job_class: type[Job], waiting: JobQuerySet, worker: Worker) -> UUID | None:
    """Claims the first of one user's waiting jobs that nobody else has in hand."""
    rows = waiting.order_by("-priority", AGE, "id")
    if connection.features.has_select_for_update_skip_locked:
        rows = rows.select_for_update(skip_locked=True)
    for job_id, epoch in rows.values_list("pk", "epoch")[:5]:
        free = job_class.objects.queued().filter(pk=job_id, epoch=epoch, cancel_requested=False)
        if free.update(
            status=Job.Status.RUNNING,
            epoch=F("epoch") + 1,
            version=F("version") + 1,
            worker=worker,
            lease_expires_at=lease_end(),
            started_at=Coalesce("started_at", Now()),
            turn_at=Now(),
            phase="",
            waiting_reason="",
        ):
            return job_id
    return None


def others_first(job: Job, worker: Worker, free_bytes: int | None = None) -> bool:
    """Whether another user's job would be claimed before this one if its turn were over.

    Args:
        job: One that the worker is running.
        worker: Who would claim the other.
        free_bytes: See ``claimable``.
    """
    job_class = type(job)
    waiting = claimable(job_class, worker, free_bytes).exclude(owner=job.owner_id)
    # This job's start would be the latest of all, so among users with as many others run first.
    mine = job_class.objects.running().filter(owner=job.owner_id).exclude(pk=job.pk).count()
    return any(turn.running <= mine for turn in turns(job_class, waiting))


def note_device_busy(job_class: type[JobT], worker: Worker, free_bytes: int) -> int:
    """Writes on the jobs that wait for room on this worker's device why they do.

    Returns:
        What the smallest of them needs; 0 if there is none.
    """
    waiting = claimable(job_class, worker).filter(required_bytes__gt=free_bytes)
    for job in waiting.exclude(waiting_reason=Job.WaitingReason.DEVICE_BUSY)[:100]:
        set_waiting_reason(job, Job.WaitingReason.DEVICE_BUSY)
    smallest: int = waiting.aggregate(bytes=Min("required_bytes"))["bytes"] or 0
    return smallest


def set_waiting_reason(job: Job, reason: str) -> None:
    """Writes why a job waits, if it still does, and tells its owner."""
    rows = type(job).objects.queued().filter(pk=job.pk)
    if rows.update(waiting_reason=reason, version=F("version") + 1):
        job.refresh_from_db()
        job.announce()

"""Which jobs a worker may have, and the guarded claim.

Claims of one queue are made one after the other, so that two workers that wake up together do not
both serve the same user. In which order users are served is told in ``ordering``, and when it may
be left in ``choosing``.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TypeVar
from uuid import UUID

from django.db import connection, transaction
from django.db.models import F, Min, Q
from django.db.models.functions import Coalesce, Now
from django.utils import timezone

from studio_project.jobs.base import Job, lease_end
from studio_project.jobs.choosing import LOOK_AHEAD, Candidate, choose
from studio_project.jobs.ordering import first_in_turn, turns
from studio_project.jobs.querysets import JobQuerySet
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
    taken = claim_together(job_class, worker, free_bytes, most=1)
    return taken[0] if taken else None


def claim_together(
    job_class: type[JobT], worker: Worker, free_bytes: int | None = None, most: int = LOOK_AHEAD
) -> list[JobT]:
    """Takes the next job for a worker, and the waiting ones that can be done in one run with it.

    Args:
        job_class: The kind of job.
        worker: Who will do them.
        free_bytes: See ``claimable``.
        most: How many jobs at most.

    Returns:
        The jobs; the first of them says what the run needs. None if there is nothing to take.
    """
    waiting = claimable(job_class, worker, free_bytes)
    if not waiting.exists():
        return []
    with transaction.atomic():
        _one_at_a_time(job_class)
        order = _candidates(job_class, waiting, worker, free_bytes)
        if len(order) > 1:  # company is no reason for another worker to stay idle
            workers = len(live_workers(job_class.queue_name))
            most = min(most, -(-len(order) // max(1, workers)))
        while order:
            now = timezone.now()
            choice = choose(order, now, most)
            lead, *company = choice.run
            taken = _take(job_class, [lead], worker)
            if not taken:  # somebody else has it in hand at this moment
                order.remove(lead)
                continue
            taken += _take(job_class, company, worker)
            passed_over = [one.pk for one in choice.passed_over]
            job_class.objects.filter(pk__in=passed_over, passed_over_at=None).update(
                passed_over_at=now
            )
            found = job_class.objects.in_bulk(taken)
            for job in found.values():
                job.announce()
            announce_queue()
            return [found[job_id] for job_id in taken]
    return []


def _candidates(
    job_class: type[Job], waiting: JobQuerySet, worker: Worker, free_bytes: int | None
) -> list[Candidate]:
    """The next waiting jobs in fair order."""
    order = first_in_turn(job_class, waiting, LOOK_AHEAD)
    rows = job_class.objects.select_related(*job_class.candidate_rows).defer("log_tail")
    found = rows.in_bulk(order)
    return [found[job_id].candidate(worker, free_bytes) for job_id in order if job_id in found]


def _one_at_a_time(job_class: type[Job]) -> None:
    """Lets the claims of one queue wait for each other; on SQLite ``BEGIN IMMEDIATE`` did."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            number = zlib.crc32(job_class._meta.db_table.encode())
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [number])


def _take(job_class: type[Job], wanted: Sequence[Candidate], worker: Worker) -> list[UUID]:
    """Claims those of some waiting jobs that nobody else has in hand; returns which."""
    rows = job_class.objects.queued().filter(pk__in=[one.pk for one in wanted])
    if connection.features.has_select_for_update_skip_locked:
        rows = rows.select_for_update(skip_locked=True)
    free = set(rows.filter(cancel_requested=False).values_list("pk", flat=True))
    taken = [one.pk for one in wanted if one.pk in free]
    job_class.objects.queued().filter(pk__in=taken).update(
        status=Job.Status.RUNNING,
        epoch=F("epoch") + 1,
        version=F("version") + 1,
        worker=worker,
        lease_expires_at=lease_end(),
        started_at=Coalesce("started_at", Now()),
        turn_at=Now(),
        phase="",
        waiting_reason="",
    )
    return taken


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

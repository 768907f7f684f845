"""When waiting requests will be done: what is ahead of them in fair order, and how long that takes.

It lets the workers take the jobs in the order of their turns, as they would if nobody else came.
Whoever cannot be told (no history yet, no worker, a device that another kind of job holds) is told
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any
from uuid import UUID

from django.utils import timezone

from generation_app.history import Forecast
from generation_app.models import GenerationJob
from models_app.models import DiffusionModel
from studio_project.jobs import Job, queue_order
from studio_project.jobs.workers import can_hold, live_workers
from studio_project.models import User, Worker
from studio_project.waiting import Waiting

Status = GenerationJob.Status


@dataclass(frozen=True)
class _Ahead:
    """What a waiting job needs of a worker."""

    seconds: float | None
    load_seconds: float
    base_name: str
    required_bytes: int


@dataclass
class _Seat:
    """A worker as the jobs ahead leave it."""

    worker: Worker
    free_in: float
    warm: set[str]

    def take(self, job: _Ahead, usual: float) -> float:
        """Do a job; return when it is done."""
        if job.base_name not in self.warm:
            self.warm.add(job.base_name)
            self.free_in += job.load_seconds
        self.free_in += usual if job.seconds is None else job.seconds
        return self.free_in


class Foresight:
    """When requests will be done, looked up once for a whole answer.

    Args:
        waiting: The look at the queue that the answer takes anyway.
    """

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting
        self._done_in: dict[UUID | None, float] | None = None

    def eta_seconds(self, job: GenerationJob) -> int | None:
        """Return in how many seconds a request will be done; None if that cannot be told."""
        if job.status == Status.RUNNING:
            left = _left(job)
            return None if left is None else round(left)
        if job.status != Status.QUEUED or job.waiting_reason == Job.WaitingReason.DEVICE_BUSY:
            return None
        if self._done_in is None:
            workers = self._waiting.workers(GenerationJob)
            self._done_in = _schedule(self._waiting.places(GenerationJob), workers)
        seconds = self._done_in.get(job.pk)
        return None if seconds is None else max(1, round(seconds))


def foresee(user: User, base: DiffusionModel, told: Forecast | None) -> dict[str, Any]:
    """Return what a request that is not sent yet would meet.

    Args:
        user: Who would send it.
        base: What it is painted with.
        told: How long it takes by itself.

    Returns:
        `position` in the queue, and `eta_seconds` until it is done.
    """
    order = queue_order(GenerationJob, joining=user.pk)
    done_in = None
    if told is not None:
        joining = _Ahead(told.seconds, told.load_seconds, base.name, base.size_bytes)
        workers = live_workers(GenerationJob.queue_name)
        done_in = _schedule(order, workers, joining).get(None)
    position = order.index(None) + 1
    return {"position": position, "eta_seconds": None if done_in is None else round(done_in, 1)}


def _schedule(
    order: Iterable[UUID | None], workers: Iterable[Worker], joining: _Ahead | None = None
) -> dict[UUID | None, float]:
    """Return when each job in the order is done, as far as that can be told."""
    seats = [_seat(worker) for worker in workers]
    waiting: dict[UUID | None, _Ahead] = {
        pk: _Ahead(seconds, load or 0.0, name or "", size)
        for pk, seconds, load, name, size in GenerationJob.objects.queued().values_list(
            "pk", "expected_seconds", "expected_load_seconds", "base_model__name", "required_bytes"
        )
    }
    if joining is not None:
        waiting[None] = joining
    known = [job.seconds for job in waiting.values() if job.seconds is not None]
    done_in: dict[UUID | None, float] = {}
    for pk in order:
        job = waiting.get(pk)
        able = [seat for seat in seats if job and can_hold(seat.worker, job.required_bytes)]
        if job is None or not able or not known:
            continue  # nobody can do it, or nobody knows how long it takes
        seat = min(able, key=lambda seat: seat.free_in)
        ended = seat.take(job, fmean(known))
        if job.seconds is not None:
            done_in[pk] = ended
    return done_in


def _seat(worker: Worker) -> _Seat:
    # Several at once are one batch, which is done when the last of them is.
    running = GenerationJob.objects.running().filter(worker=worker).defer("log_tail")
    left = max((_left(job) or 0.0 for job in running), default=0.0)
    return _Seat(worker, left, set(worker.warm))


def _left(job: GenerationJob) -> float | None:
    """Return how long a running job will take on: by its own pace, else by what was foreseen."""
    if job.eta_seconds is not None:
        return float(job.eta_seconds)
    if job.expected_seconds is None or job.started_at is None:
        return None
    return max(0.0, job.expected_seconds - (timezone.now() - job.started_at).total_seconds())

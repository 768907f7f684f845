"""When waiting requests will be done: what is ahead of them in fair order, and how long that takes.

It lets the workers take the jobs as they would if nobody else came: in the order of their turns,
what is ready first, and together what can share a batch (see ``choosing``). Whoever cannot be told
(no history yet, no worker, a device that another kind of job holds) is told nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from statistics import fmean
from typing import Any
from uuid import UUID

from django.utils import timezone

from generation_app.models import GenerationJob
from models_app.models import DiffusionModel
from studio_project.jobs import Job, queue_order
from studio_project.jobs.choosing import LOOK_AHEAD, choose
from studio_project.jobs.workers import can_hold, live_workers
from studio_project.models import Worker
from studio_project.waiting import Waiting

Status = GenerationJob.Status
# A preview or a stall in one of the first steps would be taken for the pace of all.
PACED_STEPS = 5


@dataclass
class _Seat:
    """A worker as the jobs ahead leave it; the row is a copy, whose warm models follow them."""

    worker: Worker
    free_in: float

    def next_run(self, line: Iterable[GenerationJob], most: int) -> list[GenerationJob]:
        """Choose, as the worker will, what it does when it is free; none if it can do nothing."""
        moment = timezone.now() + timedelta(seconds=self.free_in)
        held = (job for job in line if can_hold(self.worker, job.required_bytes))
        jobs = {job.pk: job for job in islice(held, LOOK_AHEAD)}
        if not jobs:
            return []
        choice = choose([job.candidate(self.worker, None) for job in jobs.values()], moment, most)
        for one in choice.passed_over:
            jobs[one.pk].passed_over_at = jobs[one.pk].passed_over_at or moment
        return [jobs[one.pk] for one in choice.run]

    def take(self, run: Sequence[GenerationJob], usual: float) -> float:
        """Do the jobs of a run; return when they are done."""
        name = run[0].base_model.name if run[0].base_model else ""
        if name and name not in self.worker.warm:
            self.worker.warm = [*self.worker.warm, name]
            self.free_in += run[0].expected_load_seconds or 0.0
        self.free_in += _seconds_of(run, usual)
        return self.free_in


class Foresight:
    """When requests will be done, looked up once for a whole answer.

    Args:
        waiting: The look at the queue that the answer takes anyway.
    """

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting
        self._done_in: dict[UUID, float] | None = None

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


def foresee(job: GenerationJob) -> dict[str, Any]:
    """Return what a request that is not sent yet would meet.

    Args:
        job: The request, with what was foreseen of it; it is not saved.

    Returns:
        `position` in the queue, and `eta_seconds` until it is done.
    """
    order = [pk or job.pk for pk in queue_order(GenerationJob, joining=job.owner_id)]
    done_in = None
    if job.expected_seconds is not None:
        workers = live_workers(GenerationJob.queue_name)
        done_in = _schedule(order, workers, joining=job).get(job.pk)
    position = order.index(job.pk) + 1
    return {"position": position, "eta_seconds": None if done_in is None else round(done_in, 1)}


def _schedule(
    order: Iterable[UUID], workers: Iterable[Worker], joining: GenerationJob | None = None
) -> dict[UUID, float]:
    """Return when each job in the order is done, as far as that can be told."""
    waiting = {job.pk: job for job in GenerationJob.objects.queued().defer("log_tail", "metrics")}
    # Read once for all: a base's row is large, and many wait for the same.
    bases = DiffusionModel.objects.only("name").in_bulk(
        {job.base_model_id for job in waiting.values()}
    )
    for job in waiting.values():
        job.base_model = bases.get(job.base_model_id)
    if joining is not None:
        waiting[joining.pk] = joining
    known = [job.expected_seconds for job in waiting.values() if job.expected_seconds is not None]
    line = [waiting[pk] for pk in order if pk in waiting]
    seats = [_seat(worker) for worker in workers]
    count = len(seats)
    done_in: dict[UUID, float] = {}
    while line and seats and known:  # else nobody can do it, or nobody knows how long it takes
        seat = min(seats, key=lambda seat: seat.free_in)
        # Company is no reason for another worker to stay idle (see ``claiming``).
        run = seat.next_run(line, -(-min(len(line), LOOK_AHEAD) // count))
        if not run:
            seats.remove(seat)
            continue
        ended = seat.take(run, fmean(known))
        for job in run:
            line.remove(job)
            if job.expected_seconds is not None:
                done_in[job.pk] = ended
    return done_in


def _seconds_of(run: Sequence[GenerationJob], usual: float) -> float:
    """Return how long a run takes; several at once are one batch, which is done when all are."""
    told = [usual if job.expected_seconds is None else job.expected_seconds for job in run]
    if len(run) == 1:
        return told[0]
    return sum(
        alone if job.expected_joint_seconds is None else job.expected_joint_seconds
        for job, alone in zip(run, told, strict=True)
    )


def _seat(worker: Worker) -> _Seat:
    running = list(GenerationJob.objects.running().filter(worker=worker).defer("log_tail"))
    return _Seat(copy(worker), _run_left(running))


def _run_left(running: Sequence[GenerationJob]) -> float:
    """Return how long a run will take on: by its own pace, else by what was foreseen."""
    paced = [
        float(job.eta_seconds)
        for job in running
        if job.eta_seconds is not None and (job.step >= PACED_STEPS or job.expected_seconds is None)
    ]
    begun = [job.started_at for job in running if job.started_at is not None]
    if paced or not begun:
        return max(paced, default=0.0)
    taken = (timezone.now() - max(begun)).total_seconds()
    return max(0.0, _seconds_of(running, usual=0.0) - taken)


def _left(job: GenerationJob) -> float | None:
    """Return how long a running job will take on; None if nothing tells."""
    if job.eta_seconds is None and (job.expected_seconds is None or job.started_at is None):
        return None
    return _run_left([job])

"""Which workers live, and why a job that waits does so."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from django.conf import settings

from studio_project.models import Worker, seen_since

if TYPE_CHECKING:
    from studio_project.jobs.base import Job

LIVE_HEARTBEATS = 3


def alive_since() -> datetime:
    """The moment after which the heartbeat of a worker that lives must lie."""
    return seen_since(LIVE_HEARTBEATS * settings.STUDIO_HEARTBEAT_SECONDS)


def live_workers(queue_name: str) -> list[Worker]:
    """The workers that were seen lately and take work from this queue."""
    rows = Worker.objects.filter(last_seen_at__gte=alive_since(), quarantined=False).exclude(
        state__in=(Worker.State.REFUSING, Worker.State.STOPPED)
    )
    return [worker for worker in rows if queue_name in worker.queues]


def can_hold(worker: Worker, required_bytes: int, required_devices: int = 1) -> bool:
    """Whether the worker's devices suffice and are large enough; unknown sizes hold anything."""
    has_room = not worker.memory_bytes or required_bytes <= worker.memory_bytes
    return has_room and required_devices <= worker.num_devices


def waiting_reason(job: Job) -> str:
    """Why a job that is queued now waits: for other jobs, or for a worker that could do it."""
    workers = live_workers(job.queue_name)
    able = any(can_hold(worker, job.required_bytes, job.required_devices) for worker in workers)
    return "behind_jobs" if able else "no_worker"

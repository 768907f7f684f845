"""Which workers live, and why a job that waits does so."""

from __future__ import annotations

from django.conf import settings

from studio_project.models import Worker, seen_since

LIVE_HEARTBEATS = 3


def live_workers(queue_name: str) -> list[Worker]:
    """The workers that were seen lately and take work from this queue."""
    since = seen_since(LIVE_HEARTBEATS * settings.STUDIO_HEARTBEAT_SECONDS)
    rows = Worker.objects.filter(last_seen_at__gte=since, quarantined=False).exclude(
        state__in=(Worker.State.REFUSING, Worker.State.STOPPED)
    )
    return [worker for worker in rows if queue_name in worker.queues]


def can_hold(worker: Worker, required_bytes: int) -> bool:
    """Whether the worker's device is large enough; one of unknown size takes anything."""
    return not worker.memory_bytes or required_bytes <= worker.memory_bytes


def waiting_reason(queue_name: str, required_bytes: int) -> str:
    """Why a job that is queued now waits: for other jobs, or for a worker that could do it."""
    able = any(can_hold(worker, required_bytes) for worker in live_workers(queue_name))
    return "behind_jobs" if able else "no_worker"

"""What the queue looks like: one's own jobs in order, those of others without contents, workers.

It reads jobs through their registered classes and changes nothing.
"""

from __future__ import annotations

from typing import Any

from studio_project.jobs import Job, job_classes, job_counts
from studio_project.jobs.numbers import finite
from studio_project.models import User, Worker
from studio_project.waiting import Waiting, seen_workers


def queue_overview(user: User) -> dict[str, Any]:
    """Return what the queue page shows.

    Args:
        user: Who looks: their own jobs come with contents, all others without.

    Returns:
        `counts` by queue, `mine` and `others` (running first, then in the order of their turn), and
        `workers`.
    """
    waiting = Waiting()
    mine: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for job_class in job_classes():
        rows = job_class.objects.filter(status__in=(Job.Status.QUEUED, Job.Status.RUNNING))
        for job in rows.order_by("created_at"):
            if job.owner_id == user.pk:
                mine.append(_own_entry(job, waiting))
            else:
                others.append(_bar(job, waiting))
    for entries in (mine, others):
        entries.sort(key=lambda entry: entry["position"] or 0)
    workers = [_worker_entry(worker, user) for worker in seen_workers()]
    return {"counts": job_counts(), "mine": mine, "others": others, "workers": workers}


def _bar(job: Job, waiting: Waiting) -> dict[str, Any]:
    """Return what may be told of anybody's job."""
    return {"kind": job.queue_name, "status": job.status, "position": waiting.position(job)}


def _own_entry(job: Job, waiting: Waiting) -> dict[str, Any]:
    return {
        **_bar(job, waiting),
        "id": str(job.pk),
        "title": str(getattr(job, "title", "")),
        "phase": job.phase,
        "waiting_reason": waiting.reason(job),
        "progress": finite(job.progress) or 0.0,
        "step": job.step,
        "total_steps": job.total_steps,
        "eta_seconds": job.eta_seconds,
        "created_at": job.created_at.isoformat(),
        "version": job.version,
    }


def _worker_entry(worker: Worker, user: User) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": worker.name,
        "device": worker.device,
        "device_name": worker.device_name,
        "memory_bytes": worker.memory_bytes,
        "queues": worker.queues,
        "state": worker.state,
        "refusal": worker.refusal,
        "quarantined": worker.quarantined,
        "last_seen_at": worker.last_seen_at.isoformat(),
    }
    # What is warm names models, which may be somebody's own.
    return {**entry, "warm": worker.warm} if user.is_staff else entry

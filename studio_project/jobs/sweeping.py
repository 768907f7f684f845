"""What the sweeper does every few seconds for jobs, workers and files that nobody minds any more.

Every step is a guarded write, so any number of sweepers may run at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from datetime import datetime, timedelta

from django.conf import settings
from django.core.files.storage import default_storage
from django.db import DatabaseError
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone

from studio_project.jobs.base import InvalidTransition, Job
from studio_project.jobs.claiming import claimable, set_waiting_reason
from studio_project.jobs.registry import job_classes, ring
from studio_project.jobs.workers import live_workers, waiting_reason
from studio_project.models import Worker, seen_since

logger = logging.getLogger(__name__)

BATCH = 200
FILE_AGE = timedelta(hours=24)
FORGET_WORKERS_AFTER = timedelta(days=7)

Chore = Callable[[], int]
NeededKeys = Callable[[Collection[str]], Collection[str]]
_references: dict[str, list[NeededKeys]] = {}
_chores: dict[str, Chore] = {}


def register_file_references(prefix: str, needed: NeededKeys) -> None:
    """Lets the sweeper remove files under a key prefix that no row needs.

    Args:
        prefix: First part of the keys, such as ``datasets``.
        needed: Given some keys under the prefix, returns those that a row still names. Several
            kinds of rows may share a prefix; a key that any of them needs stays.
    """
    _references.setdefault(prefix, []).append(needed)


def register_chore(name: str, chore: Chore) -> None:
    """Lets the sweeper do something more in each round.

    Args:
        name: What is counted, for the report of a round.
        chore: Does it, quickly if there is nothing to do, and returns how much it did.
    """
    _chores[name] = chore


def sweep() -> dict[str, int]:
    """Does one round over the jobs and workers, and the chores of the apps.

    Returns:
        How many rows each step has changed: ``expired, canceled, rung, reasons, workers`` and what
        the chores count.
    """
    done = {"expired": 0, "canceled": 0, "rung": 0, "reasons": 0}
    done["workers"] = _mark_gone_workers()
    for job_class in job_classes():
        done["expired"] += _requeue_expired(job_class)
        done["canceled"] += _cancel_unowned(job_class)
        done["reasons"] += _explain_waiting(job_class)
        done["rung"] += _ring_if_idle(job_class)
    for name, chore in _chores.items():
        try:
            done[name] = chore()
        except DatabaseError:
            raise
        except Exception:
            logger.exception("the sweeper could not do %s", name)
    return done


def _requeue_expired(job_class: type[Job]) -> int:
    """Takes running jobs away from workers whose lease has ended."""
    expired = Q(lease_expires_at__lt=Now())
    number = 0
    for job in job_class.objects.running().filter(expired).order_by("lease_expires_at")[:BATCH]:
        try:
            # Between reading and writing the worker may have renewed its lease after all.
            job.settle_crashed(only=expired)
        except InvalidTransition:
            continue
        number += 1
        logger.warning(
            "%s lost its worker (crash %s): now %s", job.label, job.crash_count, job.status
        )
    return number


def _cancel_unowned(job_class: type[Job]) -> int:
    """Cancels what was to be canceled and has no worker that could do it."""
    status = Job.Status
    waiting = (status.PENDING, status.QUEUED, status.PAUSED)
    rows = job_class.objects.filter(status__in=waiting, cancel_requested=True)
    number = 0
    for job in rows[:BATCH]:
        try:
            job.move(status.CANCELED, from_=waiting)
        except InvalidTransition:
            continue
        number += 1
    return number


def _explain_waiting(job_class: type[Job]) -> int:
    """Keeps the waiting reasons true as workers come and go."""
    number = 0
    for job in job_class.objects.queued().order_by("queued_at")[:BATCH]:
        reason = waiting_reason(job)
        busy = job.waiting_reason == Job.WaitingReason.DEVICE_BUSY and reason == "behind_jobs"
        if job.waiting_reason != reason and not busy:
            set_waiting_reason(job, reason)
            number += 1
    return number


def _ring_if_idle(job_class: type[Job]) -> int:
    """Rings once if a worker that has no job of this kind could claim one."""
    busy = set(job_class.objects.running().values_list("worker_id", flat=True))
    for worker in live_workers(job_class.queue_name):
        if worker.pk not in busy and claimable(job_class, worker).exists():
            ring(job_class.queue_name)
            return 1
    return 0


def _mark_gone_workers() -> int:
    """Marks workers that were not seen for a while as stopped, and forgets them after a week."""
    gone = seen_since(2 * settings.STUDIO_LEASE_SECONDS)
    stopped = Worker.objects.filter(last_seen_at__lt=gone)
    number = stopped.exclude(state=Worker.State.STOPPED).update(state=Worker.State.STOPPED, warm=[])
    Worker.objects.filter(last_seen_at__lt=timezone.now() - FORGET_WORKERS_AFTER).delete()
    return number


# --- files --------------------------------------------------------------------------------------
def sweep_files() -> int:
    """Removes files older than 24 hours that no row needs; returns how many."""
    oldest = timezone.now() - FILE_AGE
    number = 0
    for prefix, askers in _references.items():
        batch: list[str] = []
        for key in _keys(prefix):
            batch.append(key)
            if len(batch) == BATCH:
                number += _remove_unneeded(batch, askers, oldest)
                batch = []
        number += _remove_unneeded(batch, askers, oldest)
    return number


def _keys(folder: str) -> Iterator[str]:
    """Every key under a folder of the storage."""
    try:
        folders, names = default_storage.listdir(folder)
    except FileNotFoundError:
        return
    for name in names:
        yield f"{folder}/{name}"
    for name in folders:
        yield from _keys(f"{folder}/{name}")


def _remove_unneeded(keys: list[str], askers: list[NeededKeys], oldest: datetime) -> int:
    number = 0
    needed = {key for asker in askers for key in asker(keys)} if keys else set()
    for key in set(keys) - needed:
        try:
            if default_storage.get_modified_time(key) < oldest:
                default_storage.delete(key)
                number += 1
        except FileNotFoundError:
            continue
    return number

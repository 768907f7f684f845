"""The job classes of the site and the bells of their queues.

Apps register their class in ``AppConfig.ready``, so that claiming, sweeping and the queue page need
no import upward.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from django.db import transaction
from django.db.models import Count

from studio_project import events

if TYPE_CHECKING:
    from studio_project.jobs.base import Job

logger = logging.getLogger(__name__)

_classes: dict[str, type[Job]] = {}
_bells: dict[str, Callable[[], object]] = {}
# After a bell that failed none is rung for a while, so that a frozen Redis delays one page only.
QUIET_SECONDS = 5.0
_quiet_until = 0.0


def register_job_class(job_class: type[Job], ring: Callable[[], object]) -> None:
    """Makes a job class known.

    Args:
        job_class: A concrete ``Job``.
        ring: Sends the doorbell message of its queue; it may raise.
    """
    _classes[job_class.queue_name] = job_class
    _bells[job_class.queue_name] = ring


def job_classes() -> list[type[Job]]:
    """The registered job classes, by the name of their queue."""
    return [_classes[name] for name in sorted(_classes)]


def ring(queue_name: str) -> None:
    """Rings the doorbell of a queue once the transaction is committed.

    It never raises: a dead Redis must not turn a saved job into an error page, and the sweeper
    rings again.
    """
    transaction.on_commit(lambda: _ring_now(queue_name), robust=True)


def _ring_now(queue_name: str) -> None:
    global _quiet_until  # noqa: PLW0603
    if time.monotonic() < _quiet_until:
        return
    bell = _bells.get(queue_name)
    if bell is None:
        logger.warning("nobody registered a doorbell for queue %s", queue_name)
        return
    try:
        bell()
    except Exception as error:
        _quiet_until = time.monotonic() + QUIET_SECONDS
        logger.warning("could not ring queue %s, the sweeper will: %s", queue_name, error)


def job_counts() -> dict[str, dict[str, int]]:
    """How many jobs wait and run in each queue, as ``queue.changed`` carries it."""
    counts: dict[str, dict[str, int]] = {}
    for job_class in job_classes():
        status = job_class.Status
        rows = dict(
            job_class.objects.filter(status__in=(status.QUEUED, status.RUNNING))
            .order_by()
            .values_list("status")
            .annotate(number=Count("pk"))
        )
        counts[job_class.queue_name] = {
            "queued": rows.get(status.QUEUED, 0),
            "running": rows.get(status.RUNNING, 0),
        }
    return counts


def announce_queue() -> None:
    """Tells every open page how many jobs wait and run, after the commit."""
    transaction.on_commit(lambda: events.publish_queue(job_counts()), robust=True)

"""The order in which waiting jobs get their turn.

The user with the fewest running jobs comes first, then the one whose last start lies longest ago;
among one's own jobs priority counts, then age. A job that lost its worker keeps its turn.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING
from uuid import UUID

from django.db.models import Count, Max, Min, Q
from django.db.models.functions import Coalesce
from django.utils import timezone

if TYPE_CHECKING:
    from studio_project.jobs.base import Job
    from studio_project.jobs.querysets import JobQuerySet

AGE = Coalesce("queued_at", "created_at")


@dataclass(order=True)
class Turn:
    """How a user stands in the order of one queue; the smallest is served next."""

    running: int
    last_start: float
    oldest: float
    owner_id: int


def turns(job_class: type[Job], waiting: JobQuerySet, joining: int | None = None) -> list[Turn]:
    """The users with waiting jobs, in the order in which they are served.

    Args:
        job_class: The kind of job.
        waiting: The jobs that wait.
        joining: A user who would have one more, now.
    """
    oldest = dict(waiting.order_by().values_list("owner_id").annotate(oldest=Min(AGE)))
    if joining is not None:
        oldest.setdefault(joining, timezone.now())
    history = {
        owner_id: (running, last_start)
        for owner_id, running, last_start in job_class.objects.filter(owner_id__in=oldest)
        .order_by()
        .values_list("owner_id")
        .annotate(running=Count("pk", filter=Q(status="running")), last_start=Max("turn_at"))
    }
    found = []
    for owner_id, age in oldest.items():
        running, last_start = history.get(owner_id, (0, None))
        found.append(Turn(running, _seconds(last_start), _seconds(age), owner_id))
    return sorted(found)


def _seconds(moment: datetime | None) -> float:
    """A moment as a number; one that never was comes before all others."""
    return moment.timestamp() if moment else 0.0


def queue_order(job_class: type[Job], joining: int | None = None) -> list[UUID | None]:
    """The ids of the queued jobs in the order in which they would start if none ended meanwhile.

    Args:
        job_class: The kind of job.
        joining: A user who would have one more, now; None stands in its place.
    """
    waiting = job_class.objects.queued()
    mine = _by_owner(waiting)
    if joining is not None:
        mine[joining].append(None)
    return list(_in_turn(turns(job_class, waiting, joining), mine))


def first_in_turn(job_class: type[Job], waiting: JobQuerySet, most: int) -> list[UUID]:
    """The ids of the first of some waiting jobs, in the order in which they would start."""
    order = _in_turn(turns(job_class, waiting), _by_owner(waiting))
    return [job_id for job_id in islice(order, most) if job_id is not None]


def _by_owner(waiting: JobQuerySet) -> defaultdict[int, deque[UUID | None]]:
    """Each user's waiting jobs, the next one first."""
    mine: defaultdict[int, deque[UUID | None]] = defaultdict(deque)
    for job_id, owner_id in waiting.order_by("-priority", AGE, "id").values_list("pk", "owner_id"):
        mine[owner_id].append(job_id)
    return mine


def _in_turn(
    remaining: list[Turn], mine: Mapping[int, deque[UUID | None]]
) -> Iterator[UUID | None]:
    """Gives turns round until nobody has a waiting job left."""
    now = max((turn.last_start for turn in remaining), default=0.0)
    while remaining:
        turn = min(remaining)
        if not mine[turn.owner_id]:
            remaining.remove(turn)
            continue
        yield mine[turn.owner_id].popleft()
        now += 1.0
        turn.running, turn.last_start = turn.running + 1, now

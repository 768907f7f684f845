"""The order in which waiting jobs get their turn.

The user with the fewest running jobs comes first, then the one whose last start lies longest ago;
among one's own jobs priority counts, then age. A job that lost its worker keeps its turn.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from django.db.models import Count, Max, Min, Q
from django.db.models.functions import Coalesce

if TYPE_CHECKING:
    from studio_project.jobs.base import Job, JobQuerySet

AGE = Coalesce("queued_at", "created_at")


@dataclass(order=True)
class Turn:
    """How a user stands in the order of one queue; the smallest is served next."""

    running: int
    last_start: float
    oldest: float
    owner_id: int


def turns(job_class: type[Job], waiting: JobQuerySet) -> list[Turn]:
    """The users with waiting jobs, in the order in which they are served."""
    oldest = dict(waiting.order_by().values_list("owner_id").annotate(oldest=Min(AGE)))
    history = {
        owner_id: (running, last_start)
        for owner_id, running, last_start in job_class.objects.filter(owner_id__in=oldest)
        .order_by()
        .values_list("owner_id")
        .annotate(running=Count("pk", filter=Q(status="running")), last_start=Max("turn_at"))
    }
    return sorted(
        Turn(history[owner_id][0], _seconds(history[owner_id][1]), _seconds(age), owner_id)
        for owner_id, age in oldest.items()
    )


def _seconds(moment: datetime | None) -> float:
    """A moment as a number; one that never was comes before all others."""
    return moment.timestamp() if moment else 0.0


def queue_order(job_class: type[Job]) -> list[UUID]:
    """The ids of the queued jobs in the order in which they would start if none ended meanwhile."""
    waiting = job_class.objects.queued()
    remaining = turns(job_class, waiting)
    mine: defaultdict[int, deque[UUID]] = defaultdict(deque)
    for job_id, owner_id in waiting.order_by("-priority", AGE, "id").values_list("pk", "owner_id"):
        mine[owner_id].append(job_id)
    order: list[UUID] = []
    now = max((turn.last_start for turn in remaining), default=0.0)
    while remaining:
        turn = min(remaining)
        if not mine[turn.owner_id]:
            remaining.remove(turn)
            continue
        order.append(mine[turn.owner_id].popleft())
        now += 1.0
        turn.running, turn.last_start = turn.running + 1, now
    return order

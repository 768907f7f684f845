"""Which of the next jobs in fair order a worker starts, and which it does along with it.

The first in order is started, with two exceptions, both bounded. One a few places further on that
needs no model loaded goes first; and jobs that can be done in one run with the one that is started
come along. Either way a job that is passed over is delayed by at most ``PATIENCE_SECONDS``, or by
what loading its own model takes if that is longer: all that goes before it out of turn has to be
done by then. Time that nobody can foretell passes nobody over.

Nothing is read or written here; see ``claiming``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

# How many jobs in fair order are looked at.
LOOK_AHEAD = 24
PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Candidate:
    """A waiting job as a worker sees it that might start it now.

    Attributes:
        pk: The job.
        passed_over_at: When another first went before it out of turn.
        is_ready: Whether it can start without loading a model.
        seconds: How long it takes from its start on; None if nothing tells.
        load_seconds: How long its model takes to load.
        joint_key: Jobs with an equal key can be done in one run; empty for one that runs alone.
        size: How much of a run it fills.
        room: How much a run that it begins may hold.
    """

    pk: UUID
    passed_over_at: datetime | None = None
    is_ready: bool = True
    seconds: float | None = None
    load_seconds: float = 0.0
    joint_key: str = ""
    size: int = 1
    room: int = 1

    def patience_at(self, now: datetime) -> float:
        """For how many seconds from now on others may go before it."""
        waited = (now - self.passed_over_at).total_seconds() if self.passed_over_at else 0.0
        return max(PATIENCE_SECONDS, self.load_seconds) - waited


@dataclass(frozen=True)
class Choice:
    """What a worker does next.

    Attributes:
        run: The jobs of one run; the first of them decides what it needs.
        passed_over: Those that would have come before one of them.
    """

    run: tuple[Candidate, ...]
    passed_over: tuple[Candidate, ...]


def choose(order: Sequence[Candidate], now: datetime, most: int = LOOK_AHEAD) -> Choice:
    """Chooses the next run.

    Args:
        order: The next waiting jobs in fair order, at least one.
        now: The time.
        most: How many jobs the run may have.
    """
    ready = (at for at, one in enumerate(order) if one.is_ready)
    lead = next((at for at in ready if _is_fair(order, {at}, now)), 0)
    first, chosen = order[lead], [lead]
    size = first.size
    for at, one in enumerate(order):
        alike = first.joint_key and one.joint_key == first.joint_key and at != lead
        if not alike or len(chosen) == most or size + one.size > first.room:
            continue
        others = [order[other].seconds or 0.0 for other in (*chosen[1:], at)]
        # Whoever has company waits for all of it.
        if sum(others) <= PATIENCE_SECONDS and _is_fair(order, {*chosen, at}, now):
            chosen.append(at)
            size += one.size
    return Choice(tuple(order[at] for at in chosen), _passed_over(order, chosen))


def _passed_over(order: Sequence[Candidate], chosen: Collection[int]) -> tuple[Candidate, ...]:
    return tuple(one for at, one in enumerate(order[: max(chosen)]) if at not in chosen)


def _is_fair(order: Sequence[Candidate], chosen: Collection[int], now: datetime) -> bool:
    """Whether those whom a run passes over have the patience for all of it."""
    passed_over = _passed_over(order, chosen)
    if not passed_over:
        return True
    seconds = [order[at].seconds for at in chosen]
    known = [one for one in seconds if one is not None]
    patience = min(one.patience_at(now) for one in passed_over)
    return len(known) == len(seconds) and sum(known) <= patience

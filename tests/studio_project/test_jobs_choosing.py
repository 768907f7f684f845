"""Who goes before others out of turn, who comes along, and how long that may delay anybody."""

from __future__ import annotations

import math
import random
import uuid
from collections import defaultdict, deque
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest

from studio_project.jobs.choosing import LOOK_AHEAD, PATIENCE_SECONDS, Candidate, choose
from studio_project.jobs.ordering import Turn, _in_turn

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def candidate(*, ready: bool = True, seconds: float | None = 5.0, **fields: object) -> Candidate:
    return Candidate(uuid.uuid4(), is_ready=ready, seconds=seconds, **fields)  # type: ignore[arg-type]


def alike(**fields: object) -> Candidate:
    return candidate(**{"joint_key": "k", "room": 8, **fields})  # type: ignore[arg-type]


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def test_the_first_in_order_is_started_when_it_is_ready_or_nothing_is() -> None:
    ready, cold = candidate(), candidate(ready=False)
    assert choose([ready, cold], NOW).run == (ready,)
    assert choose([cold, candidate(ready=False)], NOW).run == (cold,)


def test_one_that_needs_no_load_goes_first() -> None:
    cold, other, ready = candidate(ready=False), candidate(ready=False), candidate()
    choice = choose([cold, other, ready], NOW)
    assert choice.run == (ready,)
    assert choice.passed_over == (cold, other)


@pytest.mark.parametrize(
    ("passed_over", "seconds", "load_seconds", "goes_first"),
    [
        (None, 30.0, 0.0, True),
        (None, 30.1, 0.0, False),
        (20, 10.0, 0.0, True),
        (20, 10.1, 0.0, False),
        (31, 0.1, 0.0, False),
        (20, 25.0, 45.0, True),  # its own model takes longer to load than that
        (20, 25.1, 45.0, False),
        (None, None, 0.0, False),  # nobody knows how long it would take
    ],
)
def test_nobody_is_passed_over_for_longer_than_the_bound(
    passed_over: float | None, seconds: float | None, load_seconds: float, goes_first: bool
) -> None:
    since = None if passed_over is None else ago(passed_over)
    cold = candidate(ready=False, passed_over_at=since, load_seconds=load_seconds)
    ready = candidate(seconds=seconds)
    assert (choose([cold, ready], NOW).run == (ready,)) is goes_first


def test_a_shorter_one_goes_where_a_long_one_may_not() -> None:
    cold, long, short = candidate(ready=False), candidate(seconds=60.0), candidate(seconds=2.0)
    choice = choose([cold, long, short], NOW)
    assert choice.run == (short,)
    assert choice.passed_over == (cold, long)


def test_jobs_alike_come_along_in_order_up_to_the_room() -> None:
    first, other = alike(), candidate()
    rest = [alike(size=2) for _ in range(5)]
    choice = choose([first, other, *rest], NOW)
    assert choice.run == (first, *rest[:3])
    assert choice.passed_over == (other,)
    assert choose([first, *rest], NOW, most=2).run == (first, rest[0])


def test_what_runs_alone_has_no_company() -> None:
    alone, first = candidate(), alike()
    assert choose([alone, candidate()], NOW).run == (alone,)
    assert choose([first, alike(joint_key="other"), candidate()], NOW).run == (first,)
    assert choose([alike(room=1), alike()], NOW).run[1:] == ()


def test_company_keeps_nobody_waiting_for_longer_than_the_bound() -> None:
    first = alike(seconds=100.0)
    friends = [alike(seconds=10.0) for _ in range(5)]
    assert choose([first, *friends], NOW).run == (
        first,
        *friends[:3],
    )  # which wait for first anyway
    stranger = candidate(passed_over_at=ago(15))
    assert choose([alike(seconds=5.0), stranger, *friends], NOW).run[1:] == (friends[0],)
    unknown = [alike(seconds=None) for _ in range(3)]
    assert choose(unknown, NOW).run == tuple(unknown)  # they pass nobody over
    assert len(choose([unknown[0], stranger, *unknown[1:]], NOW).run) == 1


# --- over a long time, for many users -------------------------------------------------------------
@dataclass
class Site:
    """A worker with room for one model, on a clock of its own, and people who ask."""

    rng: random.Random
    prefers_ready: bool = True
    now: float = 0.0
    warm: int = -1
    loads: int = 0
    last_start: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    waiting: dict[int, deque[Candidate]] = field(default_factory=lambda: defaultdict(deque))
    models: dict[uuid.UUID, int] = field(default_factory=dict)
    delays: dict[uuid.UUID, float] = field(default_factory=dict)
    done: set[uuid.UUID] = field(default_factory=set)

    def ask(self, user: int) -> None:
        model = self.rng.choice((0, 0, 1, 2))
        seconds = self.rng.uniform(0.5, 12.0) if self.rng.random() < 0.95 else None
        key = f"{model}" if self.rng.random() < 0.5 else ""
        job = candidate(seconds=seconds, load_seconds=8.0 * model, joint_key=key, room=8)
        self.models[job.pk], self.delays[job.pk] = model, 0.0
        self.waiting[user].append(job)

    def order(self) -> list[Candidate]:
        turns = [Turn(0, self.last_start[u], 0.0, u) for u, mine in self.waiting.items() if mine]
        pks = {user: deque(one.pk for one in mine) for user, mine in self.waiting.items()}
        by_pk = {one.pk: one for mine in self.waiting.values() for one in mine}
        order = [by_pk[pk] for pk in _in_turn(turns, pks) if pk is not None][:LOOK_AHEAD]
        if not self.prefers_ready:
            return order
        return [replace(one, is_ready=self.models[one.pk] == self.warm) for one in order]

    def serve(self) -> None:
        moment = NOW + timedelta(seconds=self.now)
        order = self.order()
        choice = choose(order, moment)
        took = sum(4.0 if one.seconds is None else one.seconds for one in choice.run)
        model = self.models[choice.run[0].pk]
        if model != self.warm:
            self.warm, self.loads = model, self.loads + 1
            took += 8.0 * model
        passed = {one.pk for one in choice.passed_over}
        chosen = {one.pk for one in choice.run}
        for user, mine in self.waiting.items():
            if any(one.pk in chosen for one in mine):
                self.last_start[user] = self.now + 0.001
            self.waiting[user] = deque(
                replace(one, passed_over_at=one.passed_over_at or moment)
                if one.pk in passed
                else one
                for one in mine
                if one.pk not in chosen
            )
        for pk in passed:
            place = next(at for at, one in enumerate(order) if one.pk == pk)
            later = [one for one in order[place:] if one.pk in chosen]
            self.delays[pk] += sum(one.seconds or math.inf for one in later)
        self.done |= chosen
        self.now += took


@pytest.mark.parametrize("seed", range(5))
def test_many_interleaved_users_wait_no_longer_than_the_bound_out_of_turn(seed: int) -> None:
    """Whoever is passed over is delayed by at most 30 s, or by the load of its own model."""
    sites = [Site(random.Random(seed)), Site(random.Random(seed), prefers_ready=False)]
    for site in sites:
        for _ in range(60):
            for user in range(12):
                # One asks all the time, the others now and then.
                if user == 0 or site.rng.random() < 0.1:
                    site.ask(user)
            if any(site.waiting.values()):
                site.serve()
        while any(site.waiting.values()):
            site.serve()
        assert site.done == set(site.models)
        for pk, delay in site.delays.items():
            assert delay <= max(PATIENCE_SECONDS, 8.0 * site.models[pk])
    near, fair = sites
    assert near.loads < fair.loads
    assert max(near.delays.values()) > 10.0  # others do go first

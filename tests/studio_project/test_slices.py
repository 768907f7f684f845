"""How long a turn lasts."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from generation_app.models import GenerationJob
from studio_project import jobs, slices
from studio_project.models import User, Worker
from studio_project.slices import Slice


class _Device:
    def free_bytes(self, kind: str) -> None:
        return None


@pytest.mark.parametrize(("first_step_at", "over_at"), [(1.0, 5.0), (4.0, 8.0)])
def test_a_turn_works_at_least_as_long_as_it_took_to_begin(
    first_step_at: float, over_at: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(slices, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(slices.jobs, "others_first", lambda *args: True)
    job: Any = SimpleNamespace(
        slice_seconds=lambda: 5.0, step=1, total_steps=9, queue_name="training"
    )
    turn = Slice(job)

    def is_over(now: float) -> bool:
        clock.now = now
        turn.look(Worker(), cast(Any, _Device()))
        return turn.is_over

    assert not is_over(100.0)  # not one step is done yet
    for now in (first_step_at, first_step_at + 1):
        clock.now = now
        turn.stepped()
    assert not is_over(over_at - 0.1)
    assert is_over(over_at)


def test_time_aside_is_no_part_of_a_turn(
    alice: User,
    bob: User,
    make_job: Callable[..., GenerationJob],
    serving: Worker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(GenerationJob, "slice_seconds", classmethod(lambda cls: 30.0))
    make_job(alice)
    job = jobs.claim(GenerationJob, serving)
    assert job is not None
    make_job(bob)
    job.total_steps = 100
    turn = Slice(job)
    turn.stepped()
    turn.skip(-60.0)  # a minute later
    turn.skip(40.0)
    turn.look(serving, cast(Any, _Device()))
    assert not turn.is_over
    turn.skip(-60.0)
    turn.look(serving, cast(Any, _Device()))
    assert turn.is_over

"""What a run says and when it stops."""

from __future__ import annotations

import pytest

import training_app.trainer.reporting as reporting
from tests.training_app.trainer.conftest import Recorder
from training_app.trainer.luggage import Luggage
from training_app.trainer.reporting import Reporter, StopRun


def test_a_phase_is_told_once_and_its_counting_sometimes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "MESSAGES_PER_SECOND", 1e-9)
    channel = Recorder()
    reporter = Reporter(channel)
    reporter.phase("caching", 0, 100)
    reporter.progress("step")
    for done in range(100):
        reporter.phase("caching", done, 100)
    assert [message["done"] for message in channel.of("phase")] == [0]
    reporter.phase("training")
    assert channel.last["phase"] == "training"


def test_a_wish_to_keep_is_heard_once() -> None:
    reporter = Reporter(Recorder(stop_at=0, how="keep"))
    assert reporter.stop_requested() == "keep"
    reporter.keep()
    assert reporter.stop_requested() is None


def test_a_cancel_after_a_wish_to_keep_still_cancels() -> None:
    reporter = Reporter(Recorder(stop_at=0, how="cancel"))
    reporter.keep()
    with pytest.raises(StopRun) as stop:
        reporter.raise_if_stopped(step=7)
    assert (stop.value.how, stop.value.step) == ("cancel", 7)


def test_what_shall_be_kept_is_not_broken_off() -> None:
    Reporter(Recorder(stop_at=0, how="keep")).raise_if_stopped(step=7)


def test_a_note_has_a_code_and_its_values() -> None:
    channel = Recorder()
    Reporter(channel).note("resumed", step=3)
    assert channel.last == {"type": "note", "code": "resumed", "params": {"step": 3}}


class Shared(Recorder):
    """A channel on which others want the device once."""

    def __init__(self, stop: str | None = None) -> None:
        super().__init__()
        self.stop, self.wanted = stop, True

    def aside_wanted(self) -> bool:
        return self.wanted

    def wait_aside(self) -> str | None:
        self.wanted = False
        return self.stop


def test_a_run_gives_way_wherever_it_can_be_broken_off() -> None:
    channel = Shared()
    reporter = Reporter(channel)
    reporter.phase("caching")
    reporter.raise_if_stopped()
    reporter.raise_if_stopped()
    told = [(m["type"], m.get("phase")) for m in channel.messages]
    # What it does is told again, for the worker has shown another phase meanwhile.
    assert told == [("phase", "caching"), ("aside", None), ("back", None), ("phase", "caching")]
    assert not reporter.is_aside
    assert channel.of("back")[0]["seconds"] == reporter.seconds_aside > 0


def test_a_run_that_shall_stop_while_it_stands_aside_stays_there() -> None:
    channel = Shared(stop="pause")
    reporter = Reporter(channel)
    with pytest.raises(StopRun) as stop:
        reporter.raise_if_stopped(step=3)
    assert (stop.value.how, reporter.is_aside, reporter.is_in_the_way) == ("pause", True, False)
    assert reporter.stop_requested() == "pause"  # whatever is asked later


def test_memory_is_told_when_it_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    held = iter([5, 5, 7, 6])
    monkeypatch.setattr(reporting, "most_held_bytes", lambda device: next(held))
    channel = Recorder()
    reporter = Reporter(channel, "cuda:0")
    for _ in range(4):
        reporter.memory()
    assert [message["held_bytes"] for message in channel.of("memory")] == [5, 7]


def test_a_run_for_which_there_is_no_ram_stays_where_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class NoRoom(Luggage):
        def take_away(self) -> int:
            raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(reporting, "Luggage", NoRoom)
    channel = Shared()
    reporter = Reporter(channel)
    reporter.raise_if_stopped()
    reporter.raise_if_stopped()
    assert [m["code"] for m in channel.of("note")] == ["could_not_stand_aside"]
    assert not channel.of("aside")

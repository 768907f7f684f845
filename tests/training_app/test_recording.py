"""What a trainer says of standing aside, as its owner sees it."""

from __future__ import annotations

from typing import Any

import pytest

from studio_project.models import User
from tests.factories import make_training, make_worker
from training_app import recording
from training_app.models import TrainingJob
from training_app.recording import Recorder
from training_app.texts import note_sentence


@pytest.fixture
def job(alice: User) -> TrainingJob:
    """A training that a worker has claimed."""
    return make_training(alice, status="running", epoch=1, worker=make_worker())


def step(number: int) -> dict[str, Any]:
    history = [{"history": [[number, 0.5, 1e-4, 0.9]]}]
    return {"type": "step", "step": number, "total_steps": 100, "history": history}


def test_time_aside_is_shown_and_counts_for_nothing(
    job: TrainingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(recording.time, "monotonic", lambda: now)
    recorder = Recorder(job)
    recorder(step(1))
    now += 10
    recorder(step(11))
    assert (job.phase, job.eta_seconds) == ("training", 81)  # 11 steps in 10 s: the first is free
    recorder({"type": "aside", "held_bytes": 0})
    assert (job.phase, job.eta_seconds) == ("aside", None)
    now += 500
    recorder({"type": "back", "seconds": 500.0})
    recorder(step(12))
    assert job.eta_seconds == pytest.approx(73, abs=1)
    assert job.phase == "training"


def test_one_line_tells_of_all_times_until_something_else_happens(job: TrainingJob) -> None:
    recorder = Recorder(job)
    for seconds in (20.0, 10.5):
        recorder({"type": "aside", "held_bytes": 0})
        recorder({"type": "back", "seconds": seconds})
    recorder.note("resumed", step=3)
    recorder({"type": "back", "seconds": 1.0})
    notes = [(note.code, note.params) for note in job.notes.all()]
    assert [code for code, _ in notes] == ["stood_aside", "resumed", "stood_aside"]
    assert notes[0][1] == {"seconds": 30.5}
    assert "30.5 s" in note_sentence(*notes[0])

"""The numbers of a training: many steps in few rows, and steps that are done again."""

from __future__ import annotations

from typing import Any

import pytest

from studio_project.models import User, Worker
from tests.factories import make_training, make_worker
from training_app import metrics
from training_app.models import TrainingJob
from training_app.recording import Recorder


@pytest.fixture
def job(alice: User) -> TrainingJob:
    """A training that a worker has claimed."""
    return make_training(alice, status="running", epoch=1, worker=make_worker())


def points(*steps: int, loss: float = 0.5) -> list[list[Any]]:
    return [[step, loss, 1e-4, 0.9] for step in steps]


def test_a_hundred_steps_are_one_row(job: TrainingJob, django_assert_max_num_queries: Any) -> None:
    for begin in range(1, 1001, 40):
        metrics.write(job, points(*range(begin, begin + 40)))
    assert job.metrics.count() == 10
    with django_assert_max_num_queries(1):
        read = metrics.read(job, after_step=0, limit=10_000)
    assert [point[0] for point in read] == list(range(1, 1001))


@pytest.mark.parametrize("after", [0, 1, 99, 100, 101, 250, 299, 300, 301])
def test_reading_goes_on_after_any_step(job: TrainingJob, after: int) -> None:
    metrics.write(job, points(*range(1, 301)))
    read = [point[0] for point in metrics.read(job, after_step=after, limit=70)]
    assert read == list(range(after + 1, min(after + 70, 300) + 1))


def test_what_comes_twice_is_there_once(job: TrainingJob) -> None:
    metrics.write(job, points(99, 100, 101))
    metrics.write(job, points(101, 102, loss=0.1))
    read = metrics.read(job, after_step=98, limit=10)
    assert [(point[0], point[1]) for point in read] == [
        (99, 0.5), (100, 0.5), (101, 0.1), (102, 0.1),
    ]  # fmt: skip


@pytest.mark.parametrize("step", [1, 100, 101, 150, 201])
def test_steps_that_are_done_again_are_forgotten(job: TrainingJob, step: int) -> None:
    metrics.write(job, points(*range(1, 251)))
    metrics.forget_from(job, step)
    read = metrics.read(job, after_step=0, limit=1000)
    assert [point[0] for point in read] == list(range(1, step))


def test_a_burst_tells_of_every_step_with_its_gradient_norm() -> None:
    message = {
        "type": "step",
        "history": [{"history": [[1, 0.5, 0.1, 2.0]]}, {"history": [[2, 0.4, 0.1, None]]}],
    }
    assert list(metrics.points_of(message)) == [[1, 0.5, 0.1, 2.0], [2, 0.4, 0.1, None]]


def test_held_out_losses_come_in_order_and_are_replaced(job: TrainingJob) -> None:
    recorder = Recorder(job)
    for step, loss in ((10, 0.9), (20, 0.8), (30, 0.7), (20, 0.6)):
        recorder({"type": "validation", "step": step, "loss": loss})
    job.refresh_from_db()
    assert job.held_out_losses == [[10, 0.9], [20, 0.6]]


def test_another_trainings_numbers_are_its_own(job: TrainingJob, bob: User) -> None:
    other = make_training(bob, status="running", epoch=1, worker=Worker.objects.get())
    metrics.write(job, points(1, 2))
    metrics.write(other, points(1))
    metrics.forget_from(other, 1)
    assert len(metrics.read(job, after_step=0, limit=10)) == 2
    assert metrics.read(other, after_step=0, limit=10) == []

"""A training on two devices: one child to the worker, whatever happens to its processes."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psutil
import pytest

from models_app.models import DiffusionModel
from studio_project import supervision
from studio_project.api import Problem
from studio_project.child_process import Child
from studio_project.device_share import DeviceShare
from studio_project.models import User, Worker
from tests.factories import make_dataset
from training_app import actors, launching, services
from training_app.models import TrainingJob

CONFIG = {
    "trigger_word": "zuri",
    "rank": 2,
    "alpha": 4,
    "train_batch_size": 2,
    "num_devices": 2,
    "resolution": 64,
    "max_train_steps": 8,
    "sample_inference_steps": 2,
    "sample_every_steps": 0,
    "sample_prompts": ["zuri on a meadow"],
    "control_prompt": "",
}


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Iterator[Child]:
    """Two ranks that have done a step."""
    monkeypatch.setattr(launching, "TRAINER", "tests.training_app.rank_loop")
    started = launching.start_trainer(DeviceShare("cpu+cpu", 1, 0))
    request = {"words": ["é", 1.5, None]}
    started.send({"cmd": "run", "request": request})
    assert (ready := started.messages.get(60)) and ready["type"] == "ready", started.log_tail()
    began = {"type": "began", "mean": 0.5, "told": request}
    assert started.messages.get(60) == began, started.log_tail()
    yield started
    started.kill()


def _ranks(child: Child) -> list[psutil.Process]:
    found = [process for process in child._tree() if "RANK" in process.environ()]
    return sorted(found, key=lambda process: process.environ()["RANK"])


@pytest.mark.parametrize("victim", ["launcher", "first rank"])
def test_no_process_is_left_when_one_is_killed(child: Child, victim: str) -> None:
    first, other = _ranks(child)
    {"launcher": psutil.Process(child.pid), "first rank": first}[victim].kill()
    # The end without a word is what a crash looks like: the job goes on from its checkpoint.
    deadline = time.monotonic() + 20
    while not child.messages.finished and time.monotonic() < deadline:
        assert child.messages.get(0.2) is None, child.log_tail()
    child._process.wait(20)
    _gone, alive = psutil.wait_procs([first, other], timeout=20)
    assert not alive


def test_a_training_waits_for_a_worker_that_has_so_many_devices(
    worker: Worker, tiny_base: DiffusionModel, alice: User
) -> None:
    def create(**changes: object) -> TrainingJob:
        return services.create_training(
            alice,
            dataset_id=make_dataset(alice).pk,
            base_model_id=tiny_base.pk,
            config={**CONFIG, **changes},
        )

    with pytest.raises(Problem) as refused:
        create(train_batch_size=3)
    assert list(refused.value.fields) == ["config.num_devices"]
    job = services.start_training(alice, create())
    actors.train()
    job.refresh_from_db()
    assert (job.status, job.waiting_reason) == (TrainingJob.Status.QUEUED, "no_worker")
    Worker.objects.filter(pk=worker.pk).update(device="cpu+cpu")
    other = services.start_training(alice, create())
    assert other.waiting_reason == "behind_jobs"


def test_a_training_on_two_devices_becomes_a_model(
    worker: Worker, tiny_base: DiffusionModel, alice: User
) -> None:
    Worker.objects.filter(pk=worker.pk).update(device="cpu+cpu")
    worker.refresh_from_db()
    supervision.serve_as(worker)
    job = services.create_training(
        alice, dataset_id=make_dataset(alice).pk, base_model_id=tiny_base.pk, config=CONFIG
    )
    services.start_training(alice, job)
    assert job.required_devices == 2
    actors.train()
    job.refresh_from_db()
    assert job.status == TrainingJob.Status.COMPLETED, job.log_tail
    assert (job.step, job.epoch, job.crash_count) == (8, 1, 0)
    assert job.output_model is not None
    assert "Traceback" not in job.log_tail

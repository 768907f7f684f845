"""Trainings on a worker with real children: to the end, through crashes, cancels and stops."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from datasets_app import services as dataset_services
from datasets_app.models import DatasetImage
from generation_app import actors as generation_actors
from generation_app import services as generation_services
from generation_app.models import GenerationJob
from models_app import services as model_services
from models_app.inspection import inspect_adapter
from models_app.layouts import kohya_key
from models_app.models import DiffusionModel
from studio_project import storage, supervision
from studio_project.child_process import Child
from studio_project.jobs import InvalidTransition, JobLost
from studio_project.models import User, Worker
from tests.factories import (
    content_of,
    lora_bytes,
    make_base,
    make_dataset,
    make_lora,
    make_training,
    picture,
)
from tests.worker_fixtures import Once
from training_app import actors, files, launching, metrics, registration, services
from training_app.models import TrainingCheckpoint, TrainingJob
from training_app.recording import Recorder

Status = TrainingJob.Status
CONFIG = {
    "trigger_word": "zuri",
    "rank": 2,
    "alpha": 4,
    "train_batch_size": 1,
    "resolution": 64,
    "max_train_steps": 20,
    "sample_every_steps": 10,
    "sample_inference_steps": 2,
    "sample_prompts": ["zuri on a meadow"],
    "control_prompt": "",
}
LONG = {**CONFIG, "max_train_steps": 100_000, "sample_every_steps": 0}


def queue(user: User, base: DiffusionModel, config: dict[str, Any] | None = None) -> TrainingJob:
    """Create and start a training of a small dataset."""
    job = services.create_training(
        user,
        dataset_id=make_dataset(user).pk,
        base_model_id=base.pk,
        config=CONFIG if config is None else config,
    )
    return services.start_training(user, job)


def all_metrics(job: TrainingJob) -> list[list[Any]]:
    return metrics.read(job, after_step=0, limit=10**6)


def steps_of(job: TrainingJob) -> list[int]:
    return [point[0] for point in all_metrics(job)]


def again(job: TrainingJob) -> TrainingJob:
    """Read the job as a request of its owner would."""
    return TrainingJob.objects.get(pk=job.pk)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[Child]:
    """Collect the trainers that the worker starts."""
    started: list[Child] = []

    def start(*args: Any, **kwargs: Any) -> Child:
        started.append(Child(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(launching, "Child", start)
    return started


def test_from_a_dataset_to_a_picture_of_the_trained_model(
    worker: Worker, tiny_base: DiffusionModel, alice: User
) -> None:
    job = queue(alice, tiny_base)
    actors.train()
    job.refresh_from_db()
    assert job.status == Status.COMPLETED, job.log_tail
    assert (job.step, job.total_steps, job.progress) == (20, 20, 1.0)
    assert steps_of(job) == list(range(1, 21))
    assert all(loss is not None for _step, loss, *_rest in all_metrics(job))
    assert {sample.step for sample in job.samples.all()} >= {10, 20}

    model = job.output_model
    assert model is not None
    assert model.name.startswith("Trained-") and model.name.endswith(str(job.pk)[:8])
    assert (model.title, model.trigger_words) == ("Foxes v1", ["zuri"])
    assert (model.base_model, model.owner, model.type) == (tiny_base, alice, "lora")
    assert model.thumbnail_key and storage.exists(model.thumbnail_key)
    content = content_of(model.path)
    assert hashlib.sha256(content).hexdigest() == model.sha256
    assert TrainingCheckpoint.objects.filter(job=job, model=model).count() == 1
    # What has samples can be chosen; the last one is the result, and whole, to be extended.
    assert [row.step for row in job.checkpoints.all()] == [20, 10]
    assert [row.step for row in job.checkpoints_for_resume()] == [20]
    assert {entry["name"] for entry in job.checkpoints.get(step=10).files} == {files.ADAPTER}
    kohya = storage.local_copy(kohya_key(model.path))
    assert inspect_adapter(kohya).layout == "kohya"
    assert [entry["layout"] for entry in model.files] == ["diffusers", "kohya"]
    alice.refresh_from_db()
    assert alice.stored_bytes == model.size_bytes == len(content) + kohya.stat().st_size

    request = generation_services.submit_generation(
        alice,
        mode="text-to-image",
        body={"model": model.name, "prompt": "zuri", "seed": 5, "num_images": 2},
    )
    generation_actors.generate()
    request.refresh_from_db()
    assert request.status == GenerationJob.Status.COMPLETED, request.log_tail
    assert [image.seed for image in request.images.order_by("index")] == [5, 6]


def test_a_killed_trainer_is_resumed_and_registers_once(
    worker: Worker, tiny_base: DiffusionModel, alice: User, children: list[Child], once: Once
) -> None:
    job = queue(alice, tiny_base, {**CONFIG, "max_train_steps": 60})

    def kill() -> None:
        os.kill(children[0].pid, signal.SIGKILL)
        DatasetImage.objects.update(caption="changed meanwhile")

    once(Recorder, "_checkpoint", kill)
    actors.train()
    job.refresh_from_db()
    assert job.status == Status.COMPLETED, job.log_tail
    assert len(children) == 2
    assert (job.epoch, job.crash_count) == (2, 1)
    assert DiffusionModel.objects.filter(owner=alice).count() == 1
    assert steps_of(job) == list(range(1, 61))
    notes = list(job.notes.values_list("code", flat=True))
    assert notes.index("crashed") < notes.index("resumed") < notes.index("registered")


def test_three_crashes_without_progress_end_it(
    worker: Worker, tiny_base: DiffusionModel, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = queue(alice, tiny_base)
    other = queue(alice, tiny_base)
    started = []

    def start(*args: Any, **kwargs: Any) -> Child:
        started.append(1)
        module = "no_such_module" if len(started) <= 3 else launching.TRAINER
        return Child(module, **kwargs)

    monkeypatch.setattr(launching, "Child", start)
    actors.train()
    job.refresh_from_db()
    other.refresh_from_db()
    assert (job.status, job.error_code) == (Status.FAILED, "worker_lost")
    assert other.status == Status.COMPLETED


def test_cancelling_while_it_runs_leaves_no_partial_files(
    worker: Worker, tiny_base: DiffusionModel, alice: User, settings: Any, once: Once
) -> None:
    job = queue(alice, tiny_base, LONG)
    once(Recorder, "_checkpoint", lambda: services.cancel_training(alice, again(job)))
    settings.STUDIO_CHECKPOINT_SECONDS = 1
    actors.train()
    job.refresh_from_db()
    assert job.status == Status.CANCELED
    assert not DiffusionModel.objects.filter(owner=alice).exists()
    assert not job.checkpoints.exists()
    folder = settings.MEDIA_ROOT / "jobs" / str(job.pk)
    assert not list(folder.rglob("*.safetensors"))
    assert not list((settings.STUDIO_WORK_DIR / "training").glob("*/*/*"))


def test_cancelling_while_it_waits_never_starts_it(
    worker: Worker, alice: User, children: list[Child]
) -> None:
    job = queue(alice, make_base())
    services.cancel_training(alice, job)
    actors.train()
    job.refresh_from_db()
    assert (job.status, children) == (Status.CANCELED, [])


def test_a_stopping_worker_gives_the_training_back_and_another_goes_on(
    worker: Worker, tiny_base: DiffusionModel, alice: User, once: Once
) -> None:
    job = queue(alice, tiny_base, LONG)
    once(Recorder, "_step", supervision.stop_worker)
    actors.train()
    job.refresh_from_db()
    assert (job.status, job.worker, job.crash_count) == (Status.QUEUED, None, 0)
    step = job.checkpoint_step()
    assert step > 0
    supervision.serve_as(worker)

    once(Recorder, "_step", lambda: services.cancel_training(alice, again(job)))
    actors.train()
    assert job.notes.filter(code="resumed", params__step=step).exists()


def test_a_paused_training_waits_until_it_is_resumed(
    worker: Worker, tiny_base: DiffusionModel, alice: User, once: Once
) -> None:
    job = queue(alice, tiny_base, LONG)
    once(Recorder, "_step", lambda: services.pause_training(alice, again(job)))
    actors.train()
    job.refresh_from_db()
    assert job.status == Status.PAUSED
    assert job.checkpoint_step() > 0


def test_stopping_early_keeps_what_was_learned(
    worker: Worker, tiny_base: DiffusionModel, alice: User, once: Once
) -> None:
    job = queue(alice, tiny_base, LONG)
    once(Recorder, "_step", lambda: services.stop_training(alice, again(job)))
    actors.train()
    job.refresh_from_db()
    assert job.status == Status.COMPLETED, job.log_tail
    assert 0 < job.step < job.total_steps
    assert job.output_model is not None and storage.exists(job.output_model.path)
    assert job.checkpoint_step() == job.step
    kept = job.notes.get(code="kept")
    assert kept.params == {"step": job.step, "total": 100_000}


def test_a_paused_training_can_be_kept_as_it_is(
    worker: Worker, tiny_base: DiffusionModel, alice: User, once: Once
) -> None:
    job = queue(alice, tiny_base, LONG)
    once(Recorder, "_step", lambda: services.pause_training(alice, again(job)))
    actors.train()
    job.refresh_from_db()
    step = job.checkpoint_step()
    services.stop_training(alice, job)
    assert (job.status, job.stop_requested) == (Status.QUEUED, "keep")
    actors.train()
    job.refresh_from_db()
    assert job.status == Status.COMPLETED, job.log_tail
    assert 0 < step <= job.step < job.total_steps


def test_keeping_before_the_first_step_ends_it_without_a_model(
    worker: Worker, tiny_base: DiffusionModel, alice: User, once: Once
) -> None:
    job = queue(alice, tiny_base, LONG)
    once(Recorder, "_phase", lambda: services.stop_training(alice, again(job)))
    actors.train()
    job.refresh_from_db()
    assert (job.status, job.output_model) == (Status.CANCELED, None)
    assert job.notes.filter(code="nothing_to_keep").exists()


def test_a_base_that_was_taken_back_is_noticed_at_the_claim(
    worker: Worker, alice: User, bob: User, children: list[Child]
) -> None:
    base = make_base(owner=bob, visibility="shared")
    job = queue(alice, base)
    DiffusionModel.objects.filter(pk=base.pk).update(visibility="private")
    actors.train()
    job.refresh_from_db()
    assert (job.status, job.error_code, children) == (Status.FAILED, "model_unavailable", [])


def test_a_base_whose_files_were_swept_is_noticed_when_it_goes_on(
    worker: Worker, tiny_base: DiffusionModel, alice: User, children: list[Child]
) -> None:
    job = queue(alice, tiny_base)
    TrainingJob.objects.filter(pk=job.pk).update(epoch=1)  # it had begun before
    for key in tiny_base.storage_keys():
        storage.delete(key)
    actors.train()
    job.refresh_from_db()
    assert (job.status, job.error_code, children) == (Status.FAILED, "model_unavailable", [])


def test_pictures_deleted_after_the_start_are_trained_on_all_the_same(
    worker: Worker, tiny_base: DiffusionModel, alice: User
) -> None:
    captions = ("نص " * 1300, "狐" * 4000)
    job = services.create_training(
        alice,
        dataset_id=make_dataset(alice, captions=captions).pk,
        base_model_id=tiny_base.pk,
        config={**CONFIG, "max_train_steps": 4, "sample_every_steps": 0},
    )
    services.start_training(alice, job)
    for image in DatasetImage.objects.all():
        dataset_services.delete_image(alice, image)
    actors.train()
    job.refresh_from_db()
    assert job.status == Status.COMPLETED, job.log_tail
    assert job.notes.filter(code="text_too_long", params__count=2).exists()


def test_a_checkpoint_is_given_up_for_an_outage_on_the_last_attempt_only(
    alice: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_training(alice, status=Status.RUNNING, step=10)
    TrainingCheckpoint.objects.create(
        job=job, step=10, epoch=0, prefix="jobs/x", files=[{"name": files.ADAPTER}]
    )

    def away(key: str) -> Path:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(storage, "local_copy", away)
    with pytest.raises(OSError, match="Input/output"):
        actors._fetch_checkpoints(job, tmp_path, Recorder(job))
    job.crash_count = 2
    assert actors._fetch_checkpoints(job, tmp_path, Recorder(job)) is None
    assert job.notes.get().code == "checkpoint_skipped"


def test_a_full_disk_fails_with_a_sentence(
    worker: Worker, tiny_base: DiffusionModel, alice: User, settings: Any
) -> None:
    job = queue(alice, tiny_base)
    settings.STUDIO_MIN_FREE_BYTES = 10**18
    actors.train()
    job.refresh_from_db()
    assert (job.status, job.error_code) == (Status.FAILED, "disk_full")
    assert job.error("en")["hint"]


def test_who_has_one_running_lets_the_other_go_first(
    worker: Worker, alice: User, bob: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, order = make_base(), []

    def run(job: TrainingJob) -> None:
        order.append(job.owner.username)
        job.move(Status.COMPLETED, from_=[Status.RUNNING], epoch=job.epoch)

    monkeypatch.setattr(actors, "run_training", run)
    for _ in range(3):
        queue(alice, base)
    queue(bob, base)
    actors.train()
    assert order == ["alice", "bob", "alice", "alice"]


def test_one_users_trainings_start_in_their_order(
    worker: Worker, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, order = make_base(), []

    def run(job: TrainingJob) -> None:
        order.append(job.pk)
        job.move(Status.COMPLETED, from_=[Status.RUNNING], epoch=job.epoch)

    monkeypatch.setattr(actors, "run_training", run)
    jobs = [queue(alice, base) for _ in range(3)]
    actors.train()
    assert order == [job.pk for job in jobs]


def test_a_worker_that_lost_the_job_writes_and_registers_nothing(
    worker: Worker, alice: User, tmp_path: Any, settings: Any
) -> None:
    job = make_training(
        alice, base_model=make_base(), status=Status.RUNNING, epoch=1, worker=worker
    )
    zombie = TrainingJob.objects.get(pk=job.pk)
    TrainingJob.objects.filter(pk=job.pk).update(epoch=2)
    recorder = Recorder(zombie)
    path = tmp_path / "sample.png"
    path.write_bytes(picture("red"))
    step = {"type": "step", "step": 1, "total_steps": 2, "history": [[1, 0.5, 0.1]]}
    sample = {"type": "sample", "step": 1, "index": 0, "path": str(path)}
    for message in (step, sample, {"type": "checkpoint", "step": 1, "folder": "", "files": []}):
        with pytest.raises(JobLost):
            recorder(message)
    weights = tmp_path / "adapter.safetensors"
    weights.write_bytes(lora_bytes())
    with pytest.raises((JobLost, InvalidTransition)):
        registration.register_model(zombie, weights, 1)
    assert not job.metrics.exists() and not job.samples.exists() and not job.checkpoints.exists()
    assert not DiffusionModel.objects.filter(owner=alice).exists()
    assert not list((settings.MEDIA_ROOT / "models").rglob("*.safetensors"))


def test_resuming_replaces_the_metrics_after_the_checkpoint(worker: Worker, alice: User) -> None:
    job = make_training(alice, status=Status.RUNNING, epoch=1, worker=worker)
    history = [[step, 1.0, 0.1] for step in range(1, 9)]
    message = {"type": "step", "step": 8, "total_steps": 9, "history": [{"history": history}]}
    Recorder(job)(message)
    again = [[step, 2.0, 0.1] for step in (5, 6)]
    Recorder(job)({"type": "step", "step": 6, "total_steps": 9, "history": again})
    assert [tuple(point[:2]) for point in all_metrics(job)] == [
        (1, 1.0),
        (2, 1.0),
        (3, 1.0),
        (4, 1.0),
        (5, 2.0),
        (6, 2.0),
    ]


def test_sharing_is_no_way_around_a_deleted_model(alice: User, worker: Worker) -> None:
    lora = make_lora(alice, make_base())
    job = make_training(alice, status=Status.COMPLETED, output_model=lora)
    model_services.delete_model(alice, lora)
    job.refresh_from_db()
    assert job.output_model_id == lora.pk  # the row stays, marked; the API shows none

"""A completed training that is made longer: what it begins from, and every refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from datasets_app.models import Dataset, DatasetImage
from models_app.models import DiffusionModel
from studio_project import storage
from studio_project.api import Problem
from studio_project.models import User, Worker
from tests.factories import make_base, make_dataset
from tests.training_app.test_actors import CONFIG, queue, steps_of
from training_app import actors, files, services
from training_app.models import TrainingCheckpoint, TrainingJob

Api = Callable[[User | None], APIClient]
Status = TrainingJob.Status


@pytest.fixture
def done(alice: User) -> TrainingJob:
    """A completed training of 20 steps whose last checkpoint is whole."""
    config = {"trigger_word": "zuri", "max_train_steps": 20, "lr_scheduler": "constant"}
    job = services.create_training(
        alice, dataset_id=make_dataset(alice).pk, base_model_id=make_base().pk, config=config
    )
    services.start_training(alice, job)
    TrainingJob.objects.filter(pk=job.pk).update(
        status=Status.COMPLETED, step=20, finished_at=timezone.now()
    )
    prefix = f"jobs/{job.pk}/1/step-00000020"
    storage.save(f"{prefix}/{files.ADAPTER}", b"weights")
    TrainingCheckpoint.objects.create(job=job, epoch=1, step=20, prefix=prefix)
    job.refresh_from_db()
    return job


def extend(client: APIClient, job: TrainingJob, steps: Any = 10) -> Any:
    return client.post(f"/api/training/{job.pk}/extend/", {"additional_steps": steps})


def test_it_begins_where_the_other_ended(api: Api, alice: User, done: TrainingJob) -> None:
    DatasetImage.objects.update(caption="changed since")
    answer = extend(api(alice), done)
    assert answer.status_code == 201, answer.json()
    body = answer.json()
    assert answer.headers["Location"].endswith(f"/api/training/{body['id']}")
    assert (body["status"], body["resumed_from"]) == ("queued", str(done.pk))
    assert (body["step"], body["total_steps"], body["title"]) == (20, 30, "Foxes v1 +10")
    job = TrainingJob.objects.get(pk=body["id"])
    assert job.manifest["images"] == done.manifest["images"]
    changed = {
        name
        for name, value in job.manifest["config"].items()
        if done.manifest["config"][name] != value
    }
    assert changed == {"max_train_steps"}
    assert job.manifest["extends"] == 20
    assert [state.step for state in job.states_to_begin_from()] == [20]
    assert job.family_version == 2


@pytest.mark.parametrize("steps", [0, -5, 10**9, "many", None])
def test_a_number_that_is_none_is_named(
    api: Api, alice: User, done: TrainingJob, steps: Any
) -> None:
    answer = extend(api(alice), done, steps)
    assert answer.status_code == 400
    assert list(answer.json()["errors"]) == ["additional_steps"]


def test_more_steps_than_a_training_may_have_are_named(
    api: Api, alice: User, done: TrainingJob
) -> None:
    answer = extend(api(alice), done, 99_990)
    assert (answer.status_code, list(answer.json()["errors"])) == (400, ["additional_steps"])


def test_without_its_checkpoint_it_cannot_go_on(api: Api, alice: User, done: TrainingJob) -> None:
    files.drop_checkpoints(done)
    answer = extend(api(alice), done)
    assert (answer.status_code, answer.json()["code"]) == (409, "checkpoint_gone")


@pytest.mark.parametrize("status", ["running", "failed", "canceled", "paused"])
def test_only_what_is_completed_is_extended(
    api: Api, alice: User, done: TrainingJob, status: str
) -> None:
    TrainingJob.objects.filter(pk=done.pk).update(status=status)
    assert extend(api(alice), done).json()["code"] == "not_completed"


def test_deleted_pictures_and_a_deleted_base_are_named(
    api: Api, alice: User, done: TrainingJob
) -> None:
    DiffusionModel.objects.filter(pk=done.base_model_id).update(deleted_at=timezone.now())
    assert extend(api(alice), done).json()["code"] == "model_unavailable"
    DiffusionModel.objects.filter(pk=done.base_model_id).update(deleted_at=None)
    DatasetImage.objects.filter(original_name="fox0.png").update(deleted_at=timezone.now())
    assert extend(api(alice), done).json()["code"] == "images_gone"
    Dataset.objects.update(deleted_at=timezone.now())
    assert extend(api(alice), done).json()["code"] == "dataset_not_found"
    assert TrainingJob.objects.count() == 1


def test_a_stranger_gets_404(api: Api, bob: User, done: TrainingJob) -> None:
    assert extend(api(bob), done).status_code == 404


def test_what_another_training_begins_from_cannot_be_deleted(
    api: Api, alice: User, done: TrainingJob
) -> None:
    longer = TrainingJob.objects.get(pk=extend(api(alice), done).json()["id"])
    with pytest.raises(Problem) as caught:
        services.delete_training(alice, done)
    assert caught.value.code == "job_needed"
    services.cancel_training(alice, longer)
    services.delete_training(alice, done)


def test_its_last_checkpoint_gone_before_it_starts_ends_it_with_a_sentence(
    worker: Worker, api: Api, alice: User, done: TrainingJob
) -> None:
    base = done.base_model
    storage.save(f"{base.path}/model_index.json", b"{}")
    DiffusionModel.objects.filter(pk=base.pk).update(files=[{"name": "model_index.json"}])
    longer = TrainingJob.objects.get(pk=extend(api(alice), done).json()["id"])
    files.drop_checkpoints(done)
    actors.train()
    longer.refresh_from_db()
    assert (longer.status, longer.error_code) == (Status.FAILED, "checkpoint_gone")


def test_a_real_training_goes_on(
    worker: Worker, tiny_base: DiffusionModel, api: Api, alice: User
) -> None:
    job = queue(alice, tiny_base, {**CONFIG, "max_train_steps": 6, "sample_every_steps": 0})
    actors.train()
    longer = TrainingJob.objects.get(pk=extend(api(alice), job, 4).json()["id"])
    actors.train()
    longer.refresh_from_db()
    assert longer.status == Status.COMPLETED, longer.log_tail
    assert (longer.step, steps_of(longer)) == (10, [7, 8, 9, 10])
    assert longer.notes.filter(code="resumed", params__step=6).exists()
    assert longer.output_model is not None

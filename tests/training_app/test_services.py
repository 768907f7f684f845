"""What people ask of a training: both ends checked, inputs frozen, refusals that name the cure."""

from __future__ import annotations

from typing import Any

import pytest

from datasets_app.models import Dataset, DatasetImage
from models_app import services as model_services
from models_app.models import DiffusionModel
from studio_project.api import Problem
from studio_project.models import User, Visibility
from tests.factories import make_base, make_dataset, make_lora, make_training
from training_app import guards, services
from training_app.models import TrainingCheckpoint, TrainingJob
from training_app.trainer.config import TrainingConfig

Status = TrainingJob.Status


def create(user: User, dataset: Dataset, base: DiffusionModel, **fields: Any) -> TrainingJob:
    return services.create_training(user, dataset_id=dataset.pk, base_model_id=base.pk, **fields)


def refusal(code: str, function: Any, *args: Any, **kwargs: Any) -> Problem:
    with pytest.raises(Problem) as caught:
        function(*args, **kwargs)
    assert caught.value.code == code, caught.value.detail
    return caught.value


def test_a_new_training_is_pending_and_has_every_setting_resolved(alice: User) -> None:
    job = create(alice, make_dataset(alice), make_base(), config={"rank": 3})
    assert job.status == Status.PENDING
    assert job.config == {"rank": 3}
    assert job.resolved_config["rank"] == 3
    assert TrainingConfig.from_dict(job.resolved_config).rank == 3
    assert job.total_steps == job.resolved_config["max_train_steps"] > 0


def test_trainings_of_one_dataset_on_one_base_are_numbered(alice: User) -> None:
    dataset, base = make_dataset(alice), make_base()
    assert [create(alice, dataset, base).title for _ in range(2)] == ["Foxes v1", "Foxes v2"]
    assert create(alice, dataset, make_base("Other")).title == "Foxes v1"
    assert create(alice, dataset, base, title=" Mine ").title == "Mine"


def test_a_training_that_is_deleted_meanwhile_is_not_renamed(alice: User) -> None:
    job = create(alice, make_dataset(alice), make_base())
    services.delete_training(alice, TrainingJob.objects.get(pk=job.pk))
    assert refusal("not_found", services.rename_training, alice, job, "Zuri").status == 404


def test_another_users_dataset_is_not_found(alice: User, bob: User) -> None:
    problem = refusal("dataset_not_found", create, bob, make_dataset(alice), make_base())
    assert problem.status == 404
    assert list(problem.fields) == ["dataset_id"]


def test_a_shared_dataset_is_for_everyone(alice: User, bob: User) -> None:
    dataset = make_dataset(alice, visibility=Visibility.SHARED)
    assert create(bob, dataset, make_base()).owner == bob


def test_another_users_model_is_not_found(alice: User, bob: User) -> None:
    base = make_base(owner=alice, visibility=Visibility.PRIVATE)
    assert refusal("model_not_found", create, bob, make_dataset(bob), base).status == 404


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"is_active": False}, "model_unavailable"),
        ({"availability": "remote", "path": ""}, "model_unavailable"),
        ({"architecture": "svd", "category": "video"}, "method_unavailable"),
        ({"is_inpainting": True}, "model_incompatible"),
    ],
)
def test_a_base_that_cannot_be_trained_is_refused(
    alice: User, fields: dict[str, Any], code: str
) -> None:
    problem = refusal(code, create, alice, make_dataset(alice), make_base(**fields))
    assert list(problem.fields) == ["base_model_id"]
    assert not TrainingJob.objects.exists()


def test_a_lora_is_no_base(alice: User) -> None:
    lora = make_lora(alice, make_base())
    refusal("model_incompatible", create, alice, make_dataset(alice), lora)


@pytest.mark.parametrize(
    ("kind", "tune"), [("lora", "adapters"), ("dreambooth", "adapters"), ("full", "unet")]
)
@pytest.mark.parametrize("architecture", ["sd1", "sd2", "sdxl"])
def test_every_method_on_every_family(alice: User, kind: str, tune: str, architecture: str) -> None:
    base = make_base(architecture=architecture, default_settings={})
    job = create(alice, make_dataset(alice), base, type=kind)
    assert (job.type, job.resolved_config["tune"]) == (kind, tune)
    services.start_training(alice, job)
    assert TrainingConfig.from_dict(job.manifest["config"]).tune == tune


def test_a_setting_of_another_method_is_named(alice: User) -> None:
    dataset, base, config = make_dataset(alice), make_base(), {"class_prompt": "a dog"}
    problem = refusal("invalid", create, alice, dataset, base, config=config)
    assert list(problem.fields) == ["config.class_prompt"]
    assert create(alice, dataset, base, type="dreambooth", config=config).config == config


def test_an_instance_prompt_stands_for_missing_captions(alice: User) -> None:
    dataset, config = make_dataset(alice, captions=("", "a fox")), {"instance_prompt": "a zuri fox"}
    job = create(alice, dataset, make_base(), type="dreambooth", config=config)
    services.start_training(alice, job)
    assert [image["caption"] for image in job.manifest["images"]] == ["a zuri fox", "a fox"]


@pytest.mark.parametrize(
    "config",
    [
        {"rank": 0},
        {"rank": 4096},
        {"alpha": 0},
        {"alpha": -1},
        {"learning_rate": 10},
        {"resolution": 63},
        {"resolution": 100},
        {"resolution": 8192},
        {"max_train_steps": 0},
        {"max_train_steps": 10**9},
        {"sample_prompts": ["x" * 4000]},
        {"rank": "many"},
        {"learning_rate": float("nan")},
        {"nonsense": 1},
        {"sample_prompts": "not a list"},
        {"max_train_steps": 10**12},
    ],
)
def test_a_setting_that_cannot_be_used_is_named(alice: User, config: dict[str, Any]) -> None:
    problem = refusal("invalid", create, alice, make_dataset(alice), make_base(), config=config)
    assert list(problem.fields) == [f"config.{next(iter(config))}"]


def test_starting_freezes_the_inputs(alice: User) -> None:
    dataset, base = make_dataset(alice, captions=("a fox", "")), make_base()
    job = create(alice, dataset, base, config={"trigger_word": "zuri", "rank": 3})
    services.start_training(alice, job)
    assert job.status == Status.QUEUED
    DatasetImage.objects.update(caption="changed")
    job.refresh_from_db()
    assert [image["caption"] for image in job.manifest["images"]] == ["a fox", "zuri"]
    assert job.manifest["base"]["sha256"] == base.sha256
    assert job.manifest["config"]["rank"] == 3
    assert job.manifest["libraries"]["torch"].startswith("2.")
    assert job.required_bytes == base.size_bytes


def test_starting_twice_changes_nothing(alice: User) -> None:
    job = create(alice, make_dataset(alice), make_base())
    services.start_training(alice, job)
    version = job.version
    services.start_training(alice, job)
    job.refresh_from_db()
    assert (job.status, job.version) == (Status.QUEUED, version)


def test_a_training_that_has_ended_cannot_be_started(alice: User) -> None:
    job = create(alice, make_dataset(alice), make_base())
    services.cancel_training(alice, job)
    assert refusal("already_final", services.start_training, alice, job).status == 409


@pytest.mark.parametrize("status", ["pending", "completed", "failed", "canceled"])
def test_only_what_is_under_way_can_be_stopped(alice: User, status: str) -> None:
    job = make_training(alice, status=status)
    assert refusal("not_running", services.stop_training, alice, job).status == 409


@pytest.mark.parametrize("status", ["queued", "paused"])
def test_stopping_keeps_a_checkpoint_or_says_that_there_is_none(alice: User, status: str) -> None:
    job = make_training(alice, status=status)
    refusal("nothing_to_keep", services.stop_training, alice, job)
    TrainingCheckpoint.objects.create(job=job, epoch=1, step=40, prefix=f"jobs/{job.pk}/1/step-40")
    services.stop_training(alice, job)
    job.refresh_from_db()
    assert (job.status, job.stop_requested) == (Status.QUEUED, "keep")


def test_an_empty_dataset_is_refused(alice: User) -> None:
    job = create(alice, make_dataset(alice, captions=()), make_base())
    refusal("dataset_empty", services.start_training, alice, job)
    job.refresh_from_db()
    assert job.status == Status.PENDING


def test_pictures_without_words_are_named(alice: User) -> None:
    job = create(alice, make_dataset(alice, captions=("a fox", " ", "")), make_base())
    problem = refusal("captions_missing", services.start_training, alice, job)
    assert "fox1.png" in problem.detail
    assert [image["name"] for image in problem.extra["images"]] == ["fox1.png", "fox2.png"]


def test_a_base_deactivated_before_the_start_is_refused(alice: User, staff: User) -> None:
    base = make_base()
    job = create(alice, make_dataset(alice), base)
    model_services.deactivate_model(staff, base)
    refusal("model_unavailable", services.start_training, alice, job)


def test_the_cap_of_active_jobs_counts_everything_of_one_user(alice: User, bob: User) -> None:
    dataset, base = make_dataset(alice, visibility=Visibility.SHARED), make_base()
    User.objects.filter(pk=alice.pk).update(max_active_jobs=1)
    services.start_training(alice, create(alice, dataset, base))
    problem = refusal(
        "active_jobs_limit", services.start_training, alice, create(alice, dataset, base)
    )
    assert problem.status == 429
    assert services.start_training(bob, create(bob, dataset, base)).status == Status.QUEUED


def test_a_full_disk_is_refused_before_any_work(alice: User, settings: Any) -> None:
    job = create(alice, make_dataset(alice), make_base())
    settings.STUDIO_MIN_FREE_BYTES = 10**18
    assert refusal("disk_full", services.start_training, alice, job).status == 507
    job.refresh_from_db()
    assert job.status == Status.PENDING


def test_a_user_without_room_is_refused(alice: User) -> None:
    job = create(alice, make_dataset(alice), make_base())
    User.objects.filter(pk=alice.pk).update(stored_bytes=5, max_stored_bytes=5)
    refusal("storage_full", services.start_training, alice, job)


def test_a_queued_training_whose_base_goes_fails_and_a_begun_one_goes_on(
    alice: User, staff: User
) -> None:
    base = make_base()
    jobs = [create(alice, make_dataset(alice), base) for _ in range(2)]
    for job in jobs:
        services.start_training(alice, job)
    TrainingJob.objects.filter(pk=jobs[1].pk).update(started_at=jobs[1].created_at)
    model_services.deactivate_model(staff, base)
    for job in jobs:
        job.refresh_from_db()
    assert [job.status for job in jobs] == [Status.FAILED, Status.QUEUED]
    assert jobs[0].error("en")["code"] == "model_unavailable"


def test_pictures_of_live_trainings_are_in_use(alice: User) -> None:
    dataset = make_dataset(alice)
    job = create(alice, dataset, make_base())
    ids = set(DatasetImage.objects.values_list("pk", flat=True))
    assert guards.images_in_use(ids) == set()
    services.start_training(alice, job)
    assert guards.images_in_use({*ids, 10**6}) == ids
    services.cancel_training(alice, job)
    assert guards.images_in_use(ids) == set()


def test_only_what_has_ended_or_never_began_is_deleted(alice: User) -> None:
    job = make_training(alice, status=Status.QUEUED)
    assert refusal("job_active", services.delete_training, alice, job).status == 409
    services.cancel_training(alice, job)
    services.delete_training(alice, job)
    services.delete_training(alice, make_training(alice))
    assert not TrainingJob.objects.exists()


def test_pausing_and_resuming_ask_for_the_right_state(alice: User) -> None:
    job = make_training(alice)
    refusal("not_running", services.pause_training, alice, job)
    refusal("not_paused", services.resume_training, alice, job)
    TrainingJob.objects.filter(pk=job.pk).update(status=Status.RUNNING, epoch=1)
    services.pause_training(alice, job)
    assert job.stop_requested == "pause"
    TrainingJob.objects.filter(pk=job.pk).update(status=Status.PAUSED)
    job.refresh_from_db()
    assert services.resume_training(alice, job).status == Status.QUEUED

"""What a training will cost: measured once for each kind, answered to everybody, live."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from models_app.models import DiffusionModel
from studio_project import supervision
from studio_project.child_process import Child
from studio_project.models import User, Worker
from tests.factories import make_base, make_dataset, make_training, make_worker
from training_app import actors, estimates, launching, measuring
from training_app.models import TrainingJob, TrainingMeasurement
from training_app.trainer.config import resolve_config

Api = Callable[[User | None], APIClient]
CHILD = [sys.executable, "-m", "tests.training_app.dry_run_child"]


@pytest.fixture
def bells(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the bells that ask a worker to measure."""
    rung: list[str] = []
    monkeypatch.setattr(actors.measure, "send", lambda: rung.append("measure"))
    return rung


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Child]]:
    """Let a scripted child answer for the trainer."""
    started: list[Child] = []

    def start(_module: str, **kwargs: Any) -> Child:
        started.append(Child(CHILD, **kwargs))
        return started[-1]

    monkeypatch.setattr(launching, "Child", start)
    yield started
    assert not any(one.alive for one in started)


def ask(client: APIClient, user: User, base: DiffusionModel, **config: Any) -> dict[str, Any]:
    Worker.objects.update(last_seen_at=timezone.now())  # it lives, however slow the test is
    body = {
        "dataset_id": make_dataset(user).pk,
        "base_model_id": base.pk,
        "config": {"max_train_steps": 100, **config},
    }
    answer = client.post("/api/training/estimate/", body)
    assert answer.status_code == 200, answer.json()
    return answer.json()


def resolved(base: DiffusionModel, **config: Any) -> dict[str, Any]:
    values = {"max_train_steps": 100, **config}
    return resolve_config(
        values,
        architecture="sd1",
        method="lora",
        base_defaults=base.default_settings,
        num_images=2,
    ).as_dict()


def test_without_a_worker_nothing_is_wanted(api: Api, alice: User, bells: list[str]) -> None:
    answer = ask(api(alice), alice, make_base())
    assert (answer["seconds"], answer["measuring"], answer["known_from"]) == (None, False, "")
    assert bells == [] and not TrainingMeasurement.objects.exists()


def test_an_estimate_asks_once_and_shows_what_the_preset_comes_to(
    api: Api, alice: User, bells: list[str], django_capture_on_commit_callbacks: Any
) -> None:
    make_worker()
    base = make_base()
    with django_capture_on_commit_callbacks(execute=True):
        first = ask(api(alice), alice, base, rank=8, alpha=4)
    assert (first["measuring"], first["seconds"]) == (True, None)
    assert first["config"]["rank"] == 8
    assert first["effective_learning_rate"] == pytest.approx(first["config"]["learning_rate"] / 2)
    assert first["passes_per_image"] > 0
    assert bells == ["measure"]
    assert ask(api(alice), alice, base, rank=8, alpha=4)["measuring"]
    assert TrainingMeasurement.objects.count() == 1


def test_one_user_waits_for_one_answer_and_disturbs_nobody_elses(
    api: Api, alice: User, bob: User, bells: list[str]
) -> None:
    make_worker()
    base = make_base()
    ask(api(bob), bob, base, rank=16)
    for rank in (2, 4, 8):
        ask(api(alice), alice, base, rank=rank)
    wanted = TrainingMeasurement.objects.values_list("wanted_by", "config__rank")
    assert set(wanted) == {(alice.pk, 8), (bob.pk, 16)}


def test_a_worker_measures_and_both_users_see_it(
    api: Api, alice: User, bob: User, worker: Worker, tiny_base: DiffusionModel, child: list[Child]
) -> None:
    ask(api(alice), alice, tiny_base)
    actors.measure()
    assert len(child) == 1
    for user in (alice, bob):
        answer = ask(api(user), user, tiny_base)
        assert answer["seconds"] == 50
        assert (answer["seconds_per_step"], answer["peak_memory_bytes"]) == (0.5, 10**9)
        assert (answer["known_from"], answer["measuring"]) == ("measured", False)
        assert answer["fits"]
    row = TrainingMeasurement.objects.get()
    assert row.device_name == "cpu"
    # What does not change the cost of a step is not measured again.
    assert ask(api(bob), bob, tiny_base, learning_rate=1e-3, seed=5)["known_from"] == "measured"
    assert ask(api(bob), bob, tiny_base, resolution=128)["measuring"]


def test_too_little_memory_is_said_and_not_tried_again(
    api: Api, alice: User, worker: Worker, tiny_base: DiffusionModel, child: list[Child]
) -> None:
    ask(api(alice), alice, tiny_base, seed=1, train_batch_size=64)  # see the scripted child
    actors.measure()
    actors.measure()
    answer = ask(api(alice), alice, tiny_base, train_batch_size=64)
    assert (answer["fits"], answer["seconds"], answer["measuring"]) == (False, None, False)
    assert len(child) == 1


def test_a_device_in_use_is_left_alone(
    api: Api, alice: User, worker: Worker, tiny_base: DiffusionModel, child: list[Child]
) -> None:
    ask(api(alice), alice, tiny_base)
    supervision.current_device().take("generation", lambda free: True, lambda job: 1)
    actors.measure()
    assert child == []
    assert TrainingMeasurement.objects.filter(measured_at=None, claimed_at=None).exists()


def test_a_training_comes_first(
    api: Api,
    alice: User,
    worker: Worker,
    tiny_base: DiffusionModel,
    child: list[Child],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ask(api(alice), alice, tiny_base)
    device = supervision.current_device()
    monkeypatch.setattr(device, "runs", lambda kind: kind == "training" and bool(child))
    row = measuring._claim(None)
    assert row is not None
    measuring._measure(row)
    row.refresh_from_db()
    assert (row.measured_at, row.claimed_at) == (None, None)


def test_a_finished_training_tells_those_who_plan_one_like_it(
    api: Api, alice: User, bob: User, worker: Worker
) -> None:
    base = make_base()
    job = make_training(alice, base_model=base, manifest={"config": resolved(base)})
    metrics = {"steps": 60, "resumed_at_step": 10, "train_seconds": 25, "peak_memory_bytes": 7}
    actors._note_cost(job, metrics)
    answer = ask(api(bob), bob, base)
    assert (answer["seconds"], answer["peak_memory_bytes"]) == (50, 7)
    actors._note_cost(job, {"steps": 3, "train_seconds": 9})  # too short to tell
    assert ask(api(bob), bob, base)["seconds"] == 50


def test_a_device_that_is_not_here_says_nothing(alice: User) -> None:
    base, values = make_base(), {}
    values = resolved(base)
    gone = make_worker("gone", device_name="H100", last_seen_at=timezone.now() - timedelta(hours=1))
    estimates.note(base, values, "lora", gone, seconds_per_step=0.01)
    make_worker("here", device_name="RTX")
    assert estimates.cost_of(base, values, "lora").seconds_per_step is None
    DiffusionModel.objects.filter(pk=base.pk).update(sha256="c" * 64)
    Worker.objects.filter(pk=gone.pk).update(last_seen_at=timezone.now())
    base.refresh_from_db()
    assert estimates.cost_of(base, values, "lora").seconds_per_step is None


@pytest.mark.usefixtures("db")
@pytest.mark.parametrize(("tune", "factor"), [("adapters", 1.5), ("unet", 8)])
def test_a_training_is_given_the_memory_that_its_kind_takes_at_most_a_whole_device(
    tune: str, factor: float
) -> None:
    base = make_base(size_bytes=1000)
    config = {**resolved(base), "tune": tune}
    assert estimates.required_bytes(base, config, "full") == 1000  # nobody knows of a device
    make_worker("processor", memory_bytes=10**6)
    assert estimates.required_bytes(base, config, "full") == 1000 * factor
    make_worker("small", device="cuda:0", memory_bytes=1200)
    assert estimates.required_bytes(base, config, "full") == 1200
    make_worker("tiny", device="cuda:0", memory_bytes=10)
    Worker.objects.filter(name="small").update(last_seen_at=timezone.now() - timedelta(hours=1))
    assert estimates.required_bytes(base, config, "full") == 1000


@pytest.mark.usefixtures("db")
def test_what_was_measured_on_all_devices_that_may_do_a_training_is_what_it_is_given() -> None:
    base = make_base(size_bytes=1000)
    config = resolved(base)
    make_worker("processor", memory_bytes=10**6)
    one, two = (
        make_worker(name, device="cuda:0", device_name=name, memory_bytes=10**6)
        for name in ("RTX", "H100")
    )
    estimates.note(base, config, "lora", one, seconds_per_step=1.0, peak_memory_bytes=700)
    assert estimates.required_bytes(base, config, "lora") == 1500
    estimates.note(base, config, "lora", two, seconds_per_step=1.0, peak_memory_bytes=900)
    assert estimates.required_bytes(base, config, "lora") == 700
    assert estimates.required_bytes(base, config, "full") == 1500


def test_history_answers_for_the_same_resolution_only(alice: User, bob: User) -> None:
    base = make_base()
    make_training(bob, base_model=base, images_per_second=10, resolved_config={"resolution": 64})
    cost = estimates.cost_of(base, resolved(base, train_batch_size=2), "lora")
    assert (cost.seconds_per_step, cost.source) == (0.2, "history")
    assert estimates.cost_of(base, resolved(base, resolution=128), "lora").source == ""
    assert estimates.cost_of(base, resolved(base), "full").source == ""


def test_wishes_that_nobody_answers_are_forgotten(api: Api, alice: User, bells: list[str]) -> None:
    make_worker()
    ask(api(alice), alice, make_base())
    bells.clear()
    assert actors.look_after_measurements() == 0
    assert bells == ["measure"]
    TrainingMeasurement.objects.update(wanted_at=timezone.now() - timedelta(hours=1))
    assert actors.look_after_measurements() == 1
    assert not TrainingJob.objects.exists()

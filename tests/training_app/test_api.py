"""/api/training/: shapes, refusals as problem+json, and nothing for strangers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from rest_framework.test import APIClient

from studio_project import storage
from studio_project.models import User
from tests.factories import make_base, make_dataset, make_lora, make_training, make_worker, picture
from training_app import metrics
from training_app.models import TrainingJob, TrainingNote, TrainingSample

Api = Callable[..., APIClient]
PROGRESS = {
    "id", "version", "status", "phase", "waiting_reason", "position", "progress", "step",
    "total_steps", "loss", "eta_seconds", "output_model", "error",
}  # fmt: skip


@pytest.fixture
def body(alice: User) -> dict[str, Any]:
    """A request that is fine."""
    return {
        "dataset_id": make_dataset(alice).pk,
        "base_model_id": make_base().pk,
        "type": "lora",
        "config": {"trigger_word": "zuri", "rank": 3},
    }


def test_create_start_and_watch(api: Api, alice: User, body: dict[str, Any]) -> None:
    client = api(alice)
    made = client.post("/api/training/", body)
    assert made.status_code == 201, made.data
    job = made.json()
    assert made.headers["Location"].endswith(f"/api/training/{job['id']}")
    assert job["status"] == "pending"
    assert job["config"]["rank"] == 3
    assert (job["num_images"], job["cost"]["seconds"]) == (2, None)
    assert job["passes_per_image"] > 0 and job["effective_learning_rate"] > 0
    assert (job["dataset_id"], job["base_model_id"]) == (body["dataset_id"], body["base_model_id"])
    started = client.post(f"/api/training/{job['id']}/start")
    assert started.status_code == 202
    progress = client.get(f"/api/training/{job['id']}/progress/").json()
    assert set(progress) == PROGRESS
    assert progress["status"] == "queued"
    assert progress["position"] == 1
    assert progress["waiting_reason"] == "no_worker"
    assert progress["version"] == started.json()["version"]
    make_worker()
    progress = client.get(f"/api/training/{job['id']}/progress").json()
    assert progress["waiting_reason"] == "behind_jobs"


def test_cancelling_answers_with_the_state_also_when_it_has_ended(
    api: Api, alice: User, body: dict[str, Any]
) -> None:
    client = api(alice)
    path = f"/api/training/{client.post('/api/training/', body).json()['id']}"
    for _ in range(2):
        answer = client.post(f"{path}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
    assert client.post(f"{path}/start").status_code == 409


def test_an_estimate_makes_nothing(api: Api, alice: User, bob: User, body: Any) -> None:
    body = {**body, "config": {"max_train_steps": 100, "train_batch_size": 2}}
    answer = api(alice).post("/api/training/estimate", body).json()
    assert (answer["total_steps"], answer["num_images"]) == (100, 2)
    assert (answer["passes_per_image"], answer["seconds"]) == (100.0, None)
    assert answer["passes_range"] == [100.0, 100.0]
    assert not TrainingJob.objects.exists()
    assert api(bob).post("/api/training/estimate/", body).status_code == 404


def test_repeats_are_told_and_frozen(api: Api, alice: User, body: dict[str, Any]) -> None:
    client = api(alice)
    body = {**body, "config": {"max_train_steps": 100, "train_batch_size": 2}}
    path = f"/api/datasets/{body['dataset_id']}/images"
    image = client.get(path).json()["results"][0]["id"]
    client.patch(f"{path}/{image}", {"repeats": 3})
    job = client.post("/api/training/", body).json()
    assert (job["passes_per_image"], job["passes_range"]) == (100.0, [50.0, 150.0])
    client.post(f"/api/training/{job['id']}/start")
    client.patch(f"{path}/{image}", {"repeats": 1})
    row = TrainingJob.objects.get(pk=job["id"])
    assert {entry["id"]: entry["repeats"] for entry in row.manifest["images"]}[image] == 3
    assert client.get(f"/api/training/{job['id']}").json()["passes_range"] == [50.0, 150.0]
    answer = client.post("/api/training/estimate", body).json()
    assert answer["passes_range"] == [100.0, 100.0]


def test_an_unknown_field_is_named(api: Api, alice: User, body: dict[str, Any]) -> None:
    answer = api(alice).post("/api/training/", {**body, "datset": 1})
    assert answer.status_code == 400
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["errors"]["datset"][0]["code"] == "unknown_field"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"dataset_id": "x"}, "dataset_id"),
        ({"dataset_id": 10**30}, "dataset_id"),
        ({"base_model_id": None}, "base_model_id"),
        ({"title": "x" * 201}, "title"),
        ({"type": "hypernetwork"}, "type"),
        ({"config": [1]}, "config"),
        ({"config": {"rank": 10**6}}, "config.rank"),
    ],
)
def test_a_bad_value_is_named(
    api: Api, alice: User, body: dict[str, Any], change: dict[str, Any], field: str
) -> None:
    answer = api(alice).post("/api/training/", {**body, **change})
    assert answer.status_code == 400
    assert field in answer.json()["errors"]
    assert not TrainingJob.objects.exists()


def test_nan_in_json_is_refused(api: Api, alice: User) -> None:
    answer = api(alice).post(
        "/api/training/", b'{"config": {"learning_rate": NaN}}', content_type="application/json"
    )
    assert answer.status_code == 400


def test_a_repeated_request_makes_one_training(api: Api, alice: User, body: dict[str, Any]) -> None:
    client, key = api(alice), {"HTTP_IDEMPOTENCY_KEY": "once"}
    first, second = (client.post("/api/training/", body, **key) for _ in range(2))
    assert first.json()["id"] == second.json()["id"]
    assert TrainingJob.objects.count() == 1
    assert client.post("/api/training/", {**body, "title": "x"}, **key).status_code == 409


def test_lists_filter_and_page_by_key(api: Api, alice: User, bob: User) -> None:
    jobs = [make_training(alice, title=f"Fox {number}") for number in range(3)]
    make_training(bob, title="Fox of Bob")
    TrainingJob.objects.filter(pk=jobs[0].pk).update(status="failed", error_code="worker_lost")
    client = api(alice)
    assert [job["title"] for job in client.get("/api/training/").json()["results"]] == [
        "Fox 2", "Fox 1", "Fox 0",
    ]  # fmt: skip
    failed = client.get("/api/training/?status=failed").json()["results"]
    assert [job["error"]["code"] for job in failed] == ["worker_lost"]
    assert len(client.get("/api/training/?search=fox 1").json()["results"]) == 1
    page = client.get("/api/training/?limit=2").json()
    assert len(page["results"]) == 2
    assert [job["title"] for job in client.get(page["next"]).json()["results"]] == ["Fox 0"]


def test_a_list_of_many_costs_few_queries(
    api: Api, alice: User, django_assert_max_num_queries: Any
) -> None:
    for _ in range(20):
        make_training(alice, status="queued")
    client = api(alice)
    with django_assert_max_num_queries(12):
        assert len(client.get("/api/training/").json()["results"]) == 20


def test_the_title_can_be_changed_and_nothing_else(api: Api, alice: User) -> None:
    job = make_training(alice)
    client, path = api(alice), f"/api/training/{job.pk}"
    answer = client.patch(path, {"title": "Zuri"})
    assert (answer.json()["title"], answer.json()["version"]) == ("Zuri", job.version + 1)
    assert client.patch(path, {"status": "completed"}).status_code == 400


def test_the_output_and_its_path(api: Api, alice: User, staff: User) -> None:
    model = make_lora(alice, make_base())
    job = make_training(alice, status="completed", output_model=model)
    answer = api(alice).get(f"/api/training/{job.pk}").json()
    assert answer["output_model"] == {"id": model.pk, "name": "Fox", "title": "Fox"}
    assert answer["output_path"] is None
    own = make_training(staff, status="completed", output_model=make_lora(staff, model.base_model))
    assert api(staff).get(f"/api/training/{own.pk}").json()["output_path"].startswith("models/")


def test_metrics_come_in_order_and_after_a_step(api: Api, alice: User) -> None:
    job = make_training(alice)
    metrics.write(job, [[step, 1 / step, 0.1, 2.0] for step in (3, 1, 2)])
    TrainingJob.objects.filter(pk=job.pk).update(held_out_losses=[[2, 0.7]])
    client = api(alice)
    body = client.get(f"/api/training/{job.pk}/metrics?after_step=1").json()
    assert [row["step"] for row in body["results"]] == [2, 3]
    assert body["results"][0] == {
        "step": 2, "loss": 0.5, "learning_rate": 0.1, "gradient_norm": 2.0,
    }  # fmt: skip
    assert body["held_out"] == [{"step": 2, "loss": 0.7}]
    assert body["last_step"] == 3
    assert client.get(f"/api/training/{job.pk}/metrics?after_step=x").status_code == 400


def test_samples_and_the_log(api: Api, alice: User) -> None:
    job = make_training(alice, log_tail="step 1\n")
    key = storage.new_key("jobs", job.pk, suffix=".png")
    storage.save(key, picture("red"))
    TrainingSample.objects.create(
        job=job, step=5, index=0, prompt="a fox", key=key, thumbnail_key=key, width=64, height=64
    )
    TrainingNote.objects.create(job=job, code="paused", params={"step": 5})
    client = api(alice)
    (sample,) = client.get(f"/api/training/{job.pk}/samples").json()["results"]
    for name in ("url", "thumbnail_url"):
        shown = client.get(sample[name])
        assert shown.status_code == 200
        assert shown.headers["X-Content-Type-Options"] == "nosniff"
    assert "attachment" in client.get(sample["url"] + "?download=1").headers["Content-Disposition"]
    log = client.get(f"/api/training/{job.pk}/log").json()
    assert log["log_tail"] == "step 1\n"
    assert log["timeline"][0]["message"] == "Paused at step 5."


def test_no_number_is_nan(api: Api, alice: User) -> None:
    job = make_training(alice)
    body = api(alice).get(f"/api/training/{job.pk}/progress").json()
    assert (body["loss"], body["eta_seconds"], body["progress"]) == (None, None, 0.0)


def test_strangers_and_visitors_see_nothing(api: Api, alice: User, bob: User) -> None:
    job = make_training(alice, status="failed")
    paths = [f"/api/training/{job.pk}{end}" for end in (
        "", "/progress", "/metrics", "/samples", "/log", "/samples/1/file",
    )]  # fmt: skip
    for path in paths:
        assert api(bob).get(path).status_code == 404, path
        assert api().get(path).status_code == 401, path
    for verb in ("start", "cancel", "pause", "resume", "stop"):
        assert api(bob).post(f"/api/training/{job.pk}/{verb}").status_code == 404
    assert api(bob).patch(f"/api/training/{job.pk}", {"title": "mine"}).status_code == 404
    assert api(bob).delete(f"/api/training/{job.pk}").status_code == 404
    assert api(bob).get("/api/training/").json()["results"] == []
    assert api(alice).delete(f"/api/training/{job.pk}").status_code == 204


def test_training_on_another_users_data_is_refused(api: Api, bob: User, body: Any) -> None:
    answer = api(bob).post("/api/training/", body)
    assert answer.status_code == 404
    assert answer.json()["code"] == "dataset_not_found"

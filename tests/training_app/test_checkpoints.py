"""Checkpoints: which are kept and how long, and that each becomes a model at most once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone
from rest_framework.test import APIClient

from models_app.layouts import kohya_key
from models_app.models import DiffusionModel
from studio_project import storage
from studio_project.models import User, Worker
from tests.factories import (
    content_of,
    lora_bytes,
    make_base,
    make_base_of,
    make_training,
    make_worker,
    picture,
    tiny_folder,
)
from training_app import files, services
from training_app.checkpoints import register_checkpoint
from training_app.models import TrainingCheckpoint, TrainingJob, TrainingSample
from training_app.recording import Recorder

Api = Callable[[User | None], APIClient]
Status = TrainingJob.Status
LORA = lora_bytes()
WHOLE = (files.ADAPTER, "optimizer.safetensors", "random.safetensors", "state.json")


def entry(name: str, content: bytes) -> dict[str, Any]:
    return {"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def running(user: User, worker: Worker, **fields: Any) -> TrainingJob:
    """A claimed training of 100 steps."""
    values = {"status": Status.RUNNING, "epoch": 1, "total_steps": 100, "worker": worker}
    return make_training(user, **{**values, **fields})


def write(recorder: Recorder, folder: Path, step: int, *names: str, **fields: Any) -> None:
    """Let a trainer tell of a checkpoint."""
    entries = []
    for name in names or WHOLE:
        content = f"{name} at {step}".encode()
        path = folder / str(step) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        entries.append(entry(name, content))
    message = {"type": "checkpoint", "step": step, "folder": str(folder / str(step)), **fields}
    recorder({**message, "files": entries})


def chosen(user: User, **fields: Any) -> TrainingCheckpoint:
    """An ended training of a user with a checkpoint of adapters at step 50."""
    base = DiffusionModel.objects.filter(name="Base").first() or make_base()
    values = {
        "status": Status.COMPLETED,
        "finished_at": timezone.now(),
        "base_model": base,
        "manifest": {"base": {"sha256": base.sha256}},
        "resolved_config": {"trigger_word": "zuri"},
    }
    job = make_training(user, **{**values, **fields})
    prefix = f"jobs/{job.pk}/1/step-00000050"
    storage.save(f"{prefix}/{files.ADAPTER}", LORA)
    return TrainingCheckpoint.objects.create(
        job=job,
        epoch=1,
        step=50,
        prefix=prefix,
        files=[entry(files.ADAPTER, LORA)],
        size_bytes=len(LORA),
        is_whole=False,
    )


def path_of(checkpoint: TrainingCheckpoint) -> str:
    return f"/api/training/{checkpoint.job_id}/checkpoints/{checkpoint.pk}/register"


# --- what is kept ---------------------------------------------------------------------------------
def test_the_last_two_are_whole_and_every_tenth_keeps_its_weights(
    alice: User, tmp_path: Path
) -> None:
    job = running(alice, make_worker())
    recorder = Recorder(job)
    for step in (10, 14, 20, 27, 30):
        write(recorder, tmp_path, step, held_out_loss=1 / step)
    rows = {row.step: row for row in job.checkpoints.all()}
    assert {step: row.is_whole for step, row in rows.items()} == {
        10: False, 20: False, 27: True, 30: True,
    }  # fmt: skip
    assert [item["name"] for item in rows[10].files] == [files.ADAPTER]
    assert rows[10].size_bytes == len(content_of(files.checkpoint_keys(rows[10])[0]))
    assert rows[10].held_out_loss == pytest.approx(0.1)
    stored = {key for row in rows.values() for key in files.checkpoint_keys(row)}
    assert all(storage.exists(key) for key in stored)
    assert not storage.exists(f"{rows[10].prefix}/optimizer.safetensors")
    assert not storage.exists(f"jobs/{job.pk}/1/step-00000014/{files.ADAPTER}")
    assert job.checkpoint_step() == 30


def test_a_step_that_is_done_again_replaces_its_checkpoint(alice: User, tmp_path: Path) -> None:
    job = running(alice, make_worker())
    write(Recorder(job), tmp_path, 10)
    TrainingJob.objects.filter(pk=job.pk).update(epoch=2)
    job.refresh_from_db()
    write(Recorder(job), tmp_path, 10)
    (row,) = job.checkpoints.all()
    assert (row.epoch, row.prefix) == (2, f"jobs/{job.pk}/2/step-00000010")
    assert not storage.exists(f"jobs/{job.pk}/1/step-00000010/{files.ADAPTER}")


def test_nested_files_of_a_checkpoint_are_needed(alice: User, tmp_path: Path) -> None:
    job = running(alice, make_worker())
    write(
        Recorder(job), tmp_path, 10, "unet/config.json", "unet/diffusion_pytorch_model.safetensors"
    )
    keys = files.checkpoint_keys(job.checkpoints.get())
    assert files.needed_keys([*keys, "jobs/other/1/unet/config.json"]) == set(keys)


def test_unchosen_ones_go_after_two_weeks_and_those_of_a_live_training_stay(
    alice: User, bob: User
) -> None:
    old = timezone.now() - timedelta(days=15)
    expired, recent = chosen(alice, finished_at=old), chosen(alice)
    live = chosen(bob, status=Status.PAUSED, finished_at=None)
    begun_from = chosen(bob, finished_at=old)
    make_training(bob, status=Status.QUEUED, resumed_from=begun_from.job)
    registered = chosen(bob, finished_at=old)
    model, _new = _register(bob, registered)
    assert files.drop_expired() == 2
    assert not TrainingCheckpoint.objects.filter(pk=expired.pk).exists()
    assert not storage.exists(f"{expired.prefix}/{files.ADAPTER}")
    registered.refresh_from_db()
    assert (registered.prefix, registered.model) == ("", model)
    assert content_of(model.path) == LORA
    for row in (recent, live, begun_from):
        assert storage.exists(f"{row.prefix}/{files.ADAPTER}")


def test_a_canceled_training_keeps_none(alice: User) -> None:
    checkpoint = chosen(alice, status=Status.CANCELED)
    assert files.drop_expired() == 1
    assert not storage.exists(f"{checkpoint.prefix}/{files.ADAPTER}")


# --- choosing -------------------------------------------------------------------------------------
def _register(user: User, checkpoint: TrainingCheckpoint) -> tuple[DiffusionModel, bool]:
    return register_checkpoint(user, checkpoint.job, checkpoint.pk)


def test_checkpoints_are_listed_with_their_samples(api: Api, alice: User) -> None:
    checkpoint = chosen(alice)
    job = checkpoint.job
    for step in (25, 50):
        TrainingSample.objects.create(
            job=job, step=step, index=0, prompt="a fox", key="jobs/x", width=64, height=64
        )
    (row,) = api(alice).get(f"/api/training/{job.pk}/checkpoints/").json()["results"]
    assert [sample["step"] for sample in row["samples"]] == [50]
    assert (row["step"], row["size_bytes"], row["held_out_loss"]) == (50, len(LORA), None)
    assert (row["available"], row["can_resume"], row["model"]) == (True, False, None)
    expires = job.finished_at + timedelta(days=14)
    assert row["expires_at"] == expires.isoformat().replace("+00:00", "Z")


def test_a_checkpoint_becomes_a_model_once(api: Api, alice: User) -> None:
    checkpoint = chosen(alice)
    key = storage.new_key("jobs", checkpoint.job_id, suffix=".png")
    storage.save(key, picture("red"))
    TrainingSample.objects.create(
        job=checkpoint.job, step=40, index=0, key=key, width=64, height=64
    )
    client = api(alice)
    first = client.post(path_of(checkpoint), {"title": "Zuri early"})
    assert first.status_code == 201, first.json()
    model = DiffusionModel.objects.get(pk=first.json()["id"])
    assert (model.title, model.type, model.owner) == ("Zuri early", "lora", alice)
    assert (model.base_model, model.trigger_words) == (checkpoint.job.base_model, ["zuri"])
    assert content_of(model.path) == LORA
    assert model.thumbnail_key and storage.exists(model.thumbnail_key)
    again = client.post(path_of(checkpoint), {})
    assert (again.status_code, again.json()["id"]) == (200, model.pk)
    alice.refresh_from_db()
    kohya = content_of(kohya_key(model.path))
    assert alice.stored_bytes == model.size_bytes == len(LORA) + len(kohya)
    assert b"lora_unet_mid_block_attentions_0" in kohya
    checkpoint.job.refresh_from_db()
    assert checkpoint.job.output_model is None  # that one is chosen by itself
    assert checkpoint.job.notes.filter(code="chosen").count() == 1


def test_two_models_of_one_second_have_two_names(alice: User) -> None:
    first = chosen(alice)
    second = TrainingCheckpoint.objects.create(
        job=first.job, epoch=1, step=60, prefix=first.prefix, files=first.files
    )
    names = {_register(alice, row)[0].name for row in (first, second)}
    assert len(names) == 2


@pytest.mark.django_db(transaction=True)
def test_a_double_click_makes_one_model(alice: User, settings: Any) -> None:
    checkpoint = chosen(alice)

    def click(_number: int) -> int:
        try:
            return _register(alice, TrainingCheckpoint.objects.get(pk=checkpoint.pk))[0].pk
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        models = set(pool.map(click, range(4)))
    assert len(models) == 1
    assert DiffusionModel.objects.filter(owner=alice).count() == 1
    stored = list((settings.MEDIA_ROOT / "models").rglob("*.safetensors"))
    assert sorted(path.name.partition(".")[2] for path in stored) == [
        "kohya.safetensors", "safetensors",
    ]  # fmt: skip


def test_what_is_gone_cannot_be_chosen(api: Api, alice: User) -> None:
    checkpoint = chosen(alice)
    storage.delete(f"{checkpoint.prefix}/{files.ADAPTER}")
    answer = api(alice).post(path_of(checkpoint))
    assert (answer.status_code, answer.json()["code"]) == (409, "checkpoint_gone")
    storage.save(f"{checkpoint.prefix}/{files.ADAPTER}", LORA[:-1])
    answer = api(alice).post(path_of(checkpoint))
    assert (answer.status_code, answer.json()["code"]) == (409, "checkpoint_gone")
    files.drop_checkpoints(checkpoint.job)
    assert api(alice).post(path_of(checkpoint)).status_code == 404
    assert not DiffusionModel.objects.filter(owner=alice).exists()


def test_a_full_room_and_a_changed_base_refuse_it(api: Api, alice: User) -> None:
    checkpoint = chosen(alice)
    User.objects.filter(pk=alice.pk).update(max_stored_bytes=0)
    assert api(alice).post(path_of(checkpoint)).json()["code"] == "storage_full"
    User.objects.filter(pk=alice.pk).update(max_stored_bytes=10**9)
    DiffusionModel.objects.filter(pk=checkpoint.job.base_model_id).update(sha256="c" * 64)
    assert api(alice).post(path_of(checkpoint)).json()["code"] == "model_unavailable"


def test_a_stranger_can_neither_see_nor_choose(api: Api, alice: User, bob: User) -> None:
    checkpoint, own = chosen(alice), chosen(bob)
    listed = f"/api/training/{checkpoint.job_id}/checkpoints/"
    assert api(bob).get(listed).status_code == 404
    assert api(bob).post(path_of(checkpoint)).status_code == 404
    # Nor through a training of one's own.
    crossed = f"/api/training/{own.job_id}/checkpoints/{checkpoint.pk}/register"
    assert api(bob).post(crossed).status_code == 404
    assert not DiffusionModel.objects.filter(owner__isnull=False).exists()


def test_a_whole_network_becomes_a_pipeline_with_the_rest_of_its_base(alice: User) -> None:
    base = make_base_of(tiny_folder())
    learned = b"learned weights"
    checkpoint = chosen(
        alice, base_model=base, type="full", manifest={"base": {"sha256": base.sha256}}
    )
    name = "unet/diffusion_pytorch_model.safetensors"
    storage.save(f"{checkpoint.prefix}/{name}", learned)
    checkpoint.files = [entry(name, learned)]
    checkpoint.save()
    model, _new = _register(alice, checkpoint)
    folder = model.weights_folder()
    assert (folder / name).read_bytes() == learned
    assert (folder / "vae/config.json").exists() and (folder / "unet/config.json").exists()
    assert {item["name"] for item in model.files} == {item["name"] for item in base.files}
    assert model.sha256 != base.sha256
    assert (model.type, model.base_model, model.is_file) == ("full", base, False)
    assert storage.exists(f"{base.path}/{name}")
    assert content_of(f"{base.path}/{name}") != learned


def test_deleting_a_training_keeps_the_models_of_its_checkpoints(alice: User) -> None:
    checkpoint = chosen(alice)
    model, _new = _register(alice, checkpoint)
    services.delete_training(alice, checkpoint.job)
    model.refresh_from_db()
    assert content_of(model.path) == LORA

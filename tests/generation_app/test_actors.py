"""Requests on a worker with a real engine: warm between jobs, through crashes and cancels."""

from __future__ import annotations

import os
import signal
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from generation_app import actors, services
from generation_app.models import GenerationJob
from generation_app.recording import Recorder
from models_app.inspection import sha256_of
from models_app.models import DiffusionModel
from studio_project import events, storage
from studio_project.jobs import JobLost
from studio_project.models import User, Worker
from tests.factories import (
    content_of,
    make_base,
    make_full,
    make_generation,
    make_image,
    make_lora,
    picture,
    tiny_folder,
)
from tests.generation_app.engine.conftest import make_lora as write_lora
from tests.tiny import make_tiny_sd
from tests.worker_fixtures import Once

Status = GenerationJob.Status
QUICK = {"prompt": "a fox", "width": 64, "height": 64, "num_inference_steps": 2, "seed": 5}


def submit(user: User, model: DiffusionModel, **body: Any) -> GenerationJob:
    body = {"model": model.pk, **QUICK, **body}
    return services.submit_generation(user, mode="text-to-image", body=body)


def pixels(job: GenerationJob, index: int = 0) -> bytes:
    content = content_of(job.images.get(index=index).key)
    return Image.open(BytesIO(content)).convert("RGB").tobytes()


def test_pictures_are_painted_stored_and_made_again_alone(
    worker: Worker, tiny_base: DiffusionModel, alice: User
) -> None:
    several = submit(alice, tiny_base, num_images=2, run_alone=True)
    alone = submit(alice, tiny_base, seed=6)
    actors.generate()
    for job in (several, alone):
        job.refresh_from_db()
        assert job.status == Status.COMPLETED, job.log_tail
    assert (several.step, several.total_steps, several.progress) == (4, 4, 1.0)
    assert pixels(several, 1) == pixels(alone) != pixels(several, 0)
    image = alone.images.get()
    assert (image.seed, image.width, image.height) == (6, 64, 64)
    assert image.parameters["asked_model"]["name"] == tiny_base.name
    text = Image.open(BytesIO(content_of(image.key))).info["parameters"]
    assert "Seed: 6" in text
    alice.refresh_from_db()
    sizes = [image.size_bytes for job in (several, alone) for image in job.images.all()]
    assert alice.stored_bytes == sum(sizes)
    worker.refresh_from_db()
    assert worker.warm == [tiny_base.name]
    assert alone.metrics["seconds"] > 0


def plain_picture(folder: Path, lora: Path | None = None) -> bytes:
    """Paint what `submit` asks for with plain diffusers."""
    import torch

    from models_app.loading import load_noise_scheduler, load_pipeline

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pipe = load_pipeline(folder, "sd1")
    pipe.scheduler = load_noise_scheduler(folder, "DDIMScheduler")
    if lora is not None:
        pipe.load_lora_weights(lora.parent, weight_name=lora.name, adapter_name="a")
    image = pipe(
        QUICK["prompt"],
        width=64,
        height=64,
        num_inference_steps=2,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(QUICK["seed"]),
    ).images[0]
    torch.set_num_threads(threads)
    return bytes(image.tobytes())


def test_whole_networks_and_adapters_paint_what_plain_diffusers_paints(
    worker: Worker, tiny_base: DiffusionModel, alice: User, tmp_path: Path
) -> None:
    """A full training alone, with a LoRA of its base, and a DreamBooth of adapters on the base."""
    folder = make_tiny_sd(tmp_path / "whole", seed=9)
    full = make_full(alice, tiny_base, folder)
    lora_file = write_lora(tiny_folder(), tmp_path / "lora.safetensors")
    key = storage.new_key("models", suffix=".safetensors")
    storage.save(key, lora_file)
    adapters = make_lora(alice, tiny_base, type="dreambooth", path=key, sha256=sha256_of(lora_file))
    asked = {"guidance_scale": 5.0, "scheduler": "ddim"}
    jobs = [
        submit(alice, full, **asked),
        submit(alice, full, loras=[{"model": adapters.pk}], **asked),
        submit(alice, adapters, **asked),
    ]
    actors.generate()
    for job in jobs:
        job.refresh_from_db()
        assert job.status == Status.COMPLETED, job.log_tail
    painted = [pixels(job) for job in jobs]
    assert painted == [
        plain_picture(folder),
        plain_picture(folder, lora_file),
        plain_picture(tiny_folder(), lora_file),
    ]
    assert len(set(painted)) == 3


def test_a_killed_engine_is_started_again_and_goes_on_with_what_is_missing(
    worker: Worker, tiny_base: DiffusionModel, alice: User, once: Once
) -> None:
    job = submit(alice, tiny_base, num_images=4, num_inference_steps=20, run_alone=True)

    def kill() -> None:
        child = actors._engine._child
        assert child is not None
        os.kill(child.pid, signal.SIGKILL)

    once(Recorder, "_image", kill)
    actors.generate()
    job.refresh_from_db()
    assert job.status == Status.COMPLETED, job.log_tail
    assert (job.epoch, job.crash_count) == (2, 1)
    assert list(job.images.order_by("index").values_list("seed", flat=True)) == [5, 6, 7, 8]
    assert job.images.filter(key__contains="/1/").exists()


def test_cancelling_stops_between_steps_and_the_engine_stays(
    worker: Worker, tiny_base: DiffusionModel, alice: User, once: Once
) -> None:
    job = submit(alice, tiny_base, num_images=8, num_inference_steps=150)
    after = submit(alice, tiny_base)

    def cancel() -> None:
        services.cancel_generation(alice, GenerationJob.objects.get(pk=job.pk))

    once(Recorder, "_step", cancel)
    actors.generate()
    job.refresh_from_db()
    after.refresh_from_db()
    assert (job.status, after.status) == (Status.CANCELED, Status.COMPLETED)
    assert job.images.count() < 8


def test_a_released_engine_loads_again(
    worker: Worker, tiny_base: DiffusionModel, alice: User
) -> None:
    first = submit(alice, tiny_base)
    actors.generate()
    child = actors._engine._child
    actors._engine.release()
    assert child is not None and child.alive
    second = submit(alice, tiny_base)
    actors.generate()
    second.refresh_from_db()
    assert second.status == Status.COMPLETED
    assert pixels(first) == pixels(second)


def test_models_are_checked_again_at_the_claim(worker: Worker, alice: User, bob: User) -> None:
    lora = make_lora(alice, make_base(), visibility="shared")
    job = submit(bob, lora)
    DiffusionModel.objects.filter(pk=lora.pk).update(visibility="private")
    actors.generate()
    job.refresh_from_db()
    assert (job.status, job.error_code) == (Status.FAILED, "model_unavailable")


def test_files_that_are_gone_fail_with_a_sentence(worker: Worker, alice: User) -> None:
    job = submit(alice, make_base())
    actors.generate()
    job.refresh_from_db()
    assert (job.status, job.error_code) == (Status.FAILED, "model_unavailable")


def test_a_full_disk_fails_with_a_sentence(worker: Worker, alice: User, settings: Any) -> None:
    job = submit(alice, make_base())
    settings.STUDIO_MIN_FREE_BYTES = 10**18
    actors.generate()
    job.refresh_from_db()
    assert (job.status, job.error_code) == (Status.FAILED, "disk_full")


def test_a_request_whose_pictures_are_all_there_needs_no_engine(
    worker: Worker, alice: User
) -> None:
    job = make_generation(alice, make_base(), status=Status.QUEUED)
    make_image(job)
    actors.generate()
    job.refresh_from_db()
    assert (job.status, actors._engine._child) == (Status.COMPLETED, None)


def test_turns_are_shared_between_users(
    worker: Worker, alice: User, bob: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, order = make_base(), []

    def run(job: GenerationJob) -> None:
        order.append(job.owner.username)
        job.move(Status.COMPLETED, from_=[Status.RUNNING], epoch=job.epoch)

    monkeypatch.setattr(actors, "run_generation", run)
    for _ in range(20):
        submit(alice, base, run_alone=True)
    submit(bob, base, run_alone=True)
    actors.generate()
    assert order[:2] == ["alice", "bob"]


def test_a_worker_that_lost_the_job_stores_nothing(
    worker: Worker, alice: User, tmp_path: Any
) -> None:
    job = make_generation(alice, make_base(), status=Status.RUNNING, epoch=2)
    zombie = GenerationJob.objects.get(pk=job.pk)
    zombie.epoch = 1
    path = tmp_path / "0.png"
    path.write_bytes(picture("red"))
    image = {"index": 0, "seed": 7, "path": str(path), "width": 64, "height": 64}
    recorder = Recorder(zombie, [0])
    for message in (
        {"type": "image", **image},
        {"type": "step", "step": 1, "total_steps": 2},
        {"type": "phase", "phase": "saving"},
    ):
        with pytest.raises(JobLost):
            recorder(message)
    assert not job.images.exists()
    alice.refresh_from_db()
    assert alice.stored_bytes == 0


def test_previews_are_kept_for_the_owner_and_announced_twice_a_second_at_most(
    worker: Worker, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(events, "deliver", lambda groups, message: sent.append(message["event"]))
    job = make_generation(alice, make_base(), status=Status.RUNNING, epoch=1)
    recorder = Recorder(job, [0])
    for _ in range(5):
        recorder({"type": "preview", "image_index": 0, "data": "anBlZw=="})
    assert events.get_preview(job.pk) == b"jpeg"
    previews = [event for event in sent if event["type"] == "generation_job.previewed"]
    assert len(previews) == 1
    assert "data" not in previews[0]

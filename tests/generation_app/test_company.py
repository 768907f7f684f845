"""Requests of several people in one batch, on a worker with a real engine."""

from __future__ import annotations

import os
import signal
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from generation_app import actors, services
from generation_app.company import room_for
from generation_app.models import GenerationJob
from generation_app.recording import Recorder
from generation_app.remaking import make_again
from models_app.models import DiffusionModel
from studio_project.api import Problem
from studio_project.models import User, Worker
from studio_project.supervision import Outcome
from tests.factories import content_of, make_base, make_image, make_lora, make_worker
from tests.worker_fixtures import Once

Status = GenerationJob.Status
QUICK = {"width": 64, "height": 64, "num_inference_steps": 3, "scheduler": "euler_a"}


def submit(user: User, model: DiffusionModel, prompt: str, **body: Any) -> GenerationJob:
    body = {"model": model.pk, "prompt": prompt, **QUICK, **body}
    return services.submit_generation(user, mode="text-to-image", body=body)


def finish(*jobs: GenerationJob) -> None:
    actors.generate()
    for job in jobs:
        job.refresh_from_db()
        assert job.status == Status.COMPLETED, (job.error_code, job.log_tail)


def pixels(job: GenerationJob) -> np.ndarray:
    picture = Image.open(BytesIO(content_of(job.images.get().key))).convert("RGB")
    return np.asarray(picture, dtype=np.int16)


def test_a_batch_paints_what_each_request_alone_would(
    worker: Worker, tiny_base: DiffusionModel, alice: User, bob: User
) -> None:
    asked: list[tuple[User, str, dict[str, Any]]] = [
        (alice, "a fox", {"seed": 1}),
        (bob, "a red (bird:1.3)", {"seed": 2, "guidance_scale": 3.0, "negative_prompt": "blur"}),
        (bob, "a cat", {"seed": 3, "guidance_scale": 1.0}),
        (alice, "many words, " * 40, {"seed": 4, "output_format": "webp"}),
    ]
    together = [submit(user, tiny_base, prompt, **body) for user, prompt, body in asked]
    finish(*together)
    assert [job.metrics["company"] for job in together] == [4] * 4
    alone = [
        submit(user, tiny_base, prompt, run_alone=True, **body) for user, prompt, body in asked
    ]
    finish(*alone)
    for one, other in zip(together, alone, strict=True):
        assert "company" not in other.metrics
        difference = np.abs(pixels(one) - pixels(other))
        assert difference.max() <= 2
        assert difference.mean() <= 0.1
        assert (one.step, one.progress, one.owner) == (3, 1.0, other.owner)
        assert one.images.get().parameters["prompt"] == other.images.get().parameters["prompt"]
        assert one.log_tail == ""
    assert len({pixels(job).tobytes() for job in together}) == 4


def test_the_pictures_of_one_request_are_one_batch_unless_it_runs_alone(
    worker: Worker, tiny_base: DiffusionModel, alice: User, tmp_path: Path
) -> None:
    job = submit(alice, tiny_base, "a fox", num_images=2)
    assert actors._prepare(job, [0, 1], tmp_path)["together"] == 8
    job.crash_count = 1
    assert actors._prepare(job, [0, 1], tmp_path)["together"] == 1
    alone = submit(alice, tiny_base, "a fox", num_images=2, run_alone=True)
    assert actors._prepare(alone, [0, 1], tmp_path)["together"] == 1


def test_what_ends_one_is_nothing_to_the_others(
    worker: Worker,
    tiny_base: DiffusionModel,
    alice: User,
    bob: User,
    once: Once,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cancel, a model that is gone, and memory that does not do: alone it is tried again."""
    canceled, other = (
        submit(user, tiny_base, "a fox", num_inference_steps=100) for user in (alice, bob)
    )

    def cancel() -> None:
        services.cancel_generation(alice, GenerationJob.objects.get(pk=canceled.pk))

    once(Recorder, "_step", cancel)
    finish(other)
    canceled.refresh_from_db()
    assert (canceled.status, canceled.images.count()) == (Status.CANCELED, 0)
    assert other.metrics["company"] == 2
    child = actors._engine._child
    assert child is not None and child.alive

    without, other = (submit(user, tiny_base, "a fox") for user in (alice, bob))
    GenerationJob.objects.filter(pk=without.pk).update(base_model=make_base())  # has no files
    finish(other)
    without.refresh_from_db()
    assert (without.status, without.error_code) == (Status.FAILED, "model_unavailable")

    original = actors.supervise
    large, other = (submit(user, tiny_base, "a fox") for user in (alice, bob))

    def refused(job: GenerationJob, child: Any, *args: Any, **more: Any) -> Any:
        outcome = original(job, child, *args, **more)
        if job.pk == large.pk and child.is_shared:
            return Outcome("error", {"type": "error", "code": "out_of_memory", "params": {}})
        return outcome

    monkeypatch.setattr(actors, "supervise", refused)
    finish(large, other)
    assert [(job.crash_count, "company" in job.metrics) for job in (large, other)] == [
        (1, False),
        (0, True),
    ]
    assert child is actors._engine._child


def test_whoever_was_in_a_batch_that_crashed_is_tried_again_alone(
    worker: Worker, tiny_base: DiffusionModel, alice: User, bob: User, once: Once
) -> None:
    jobs = [submit(user, tiny_base, "a fox") for user in (alice, bob, bob, bob)]

    def kill() -> None:
        child = actors._engine._child
        assert child is not None
        os.kill(child.pid, signal.SIGKILL)

    once(Recorder, "_phase", kill)
    finish(*jobs)
    assert [(job.epoch, job.crash_count) for job in jobs] == [(2, 1)] * 4
    assert not any("company" in job.metrics for job in jobs)
    worker.refresh_from_db()
    assert (worker.crash_streak, worker.quarantined) == (0, False)


# --- who may share ------------------------------------------------------------------------------
@pytest.fixture
def base(db: None) -> DiffusionModel:
    return make_base()


def test_words_seed_and_guidance_differ_but_shape_and_model_may_not(
    alice: User, bob: User, base: DiffusionModel
) -> None:
    first = submit(alice, base, "a fox")
    own = {"seed": 3, "guidance_scale": 2.0, "negative_prompt": "x", "clip_skip": 1}
    assert submit(bob, base, "a cat", **own, output_format="webp").joint_key == first.joint_key
    assert len(first.joint_key) == 64
    lora = make_lora(alice, base)
    keys = {
        submit(alice, model, "a fox", **body).joint_key
        for model, body in (
            (base, {}),
            (base, {"width": 72}),
            (base, {"num_inference_steps": 4}),
            (base, {"scheduler": "euler"}),
            (make_base("Other", sha256="c" * 64), {}),
            (lora, {}),
            (base, {"loras": [{"model": lora.pk, "weight": 0.5}]}),
        )
    }
    assert len(keys) == 7


def test_who_asks_for_it_runs_alone_and_so_does_what_is_made_again(
    alice: User, base: DiffusionModel
) -> None:
    alone = submit(alice, base, "a fox", run_alone=True)
    assert (alone.joint_key, alone.parameters["run_alone"]) == ("", True)
    assert submit(alice, base, "a fox", hires_scale=2.0).joint_key == ""
    painted = submit(alice, base, "a fox", run_alone=False)
    assert painted.joint_key
    assert "run_alone" not in painted.parameters
    assert make_again(alice, make_image(painted)).joint_key == ""
    with pytest.raises(Problem) as caught:
        submit(alice, base, "a fox", run_alone="yes")
    assert set(caught.value.fields or {}) == {"run_alone"}


@pytest.mark.parametrize(
    ("device", "side", "free_bytes", "room"),
    [
        ("cpu", 64, None, 8),
        ("cpu", 128, None, 4),
        ("cpu", 256, None, 1),
        ("cuda:0", 512, None, 8),
        ("cuda:0", 1024, None, 7),
        ("cuda:0", 1024, 3 * 1024**3, 2),
        ("cuda:0", 1024, 0, 1),
    ],
)
def test_a_batch_holds_what_pays_and_fits(
    device: str, side: int, free_bytes: int | None, room: int
) -> None:
    worker = Worker(device=device, memory_bytes=8 * 1024**3)
    assert room_for({"width": side, "height": side}, 1024**3, worker, free_bytes) == room


def test_a_job_says_what_it_brings_to_a_batch(alice: User, base: DiffusionModel) -> None:
    job, worker = submit(alice, base, "a fox", num_images=3), make_worker(warm=["Base"])
    told = job.candidate(worker, None)
    assert (told.joint_key, told.size, told.room, told.is_ready) == (job.joint_key, 3, 8, True)
    job.crash_count = 1
    assert job.candidate(worker, None).joint_key == ""

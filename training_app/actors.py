"""Runs trainings on a worker: rows become a request, a child trains, its words become rows.

The message that starts it is a doorbell without contents. Which job comes next, the lease and the
control of the child are the business of `studio_project.supervision`; the training itself happens
in `training_app.trainer`, in a process of its own.
"""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import Any

import dramatiq
from django.conf import settings

from models_app.folders import INDEX_NAME
from models_app.models import DiffusionModel
from studio_project import storage
from studio_project.api import Problem
from studio_project.device_share import DeviceShare
from studio_project.jobs import ERRORS, MAX_CRASHES, RefusedError
from studio_project.supervision import (
    Outcome,
    current_device,
    current_worker,
    run_queue,
    supervise,
)
from training_app import estimates, files, measuring, workplace
from training_app.launching import start_trainer
from training_app.models import TrainingJob, TrainingMeasurement
from training_app.recording import Recorder
from training_app.registration import register_model

logger = logging.getLogger(__name__)

# A run of fewer steps says little about what a step costs.
FEWEST_STEPS = 10
Status = TrainingJob.Status


@dramatiq.actor(queue_name=TrainingJob.queue_name)
def train() -> None:
    """Hear the doorbell: run trainings until there is none to claim."""
    run_queue(TrainingJob, run_training)


def ring_doorbell() -> None:
    """Send the doorbell of the training queue."""
    train.send()


@dramatiq.actor(queue_name="default")
def measure() -> None:
    """Measure what somebody who plans a training wants to know."""
    measuring.measure_wanted()


def ring_measuring() -> None:
    """Tell a worker that something shall be measured."""
    measure.send()


def look_after_measurements() -> int:
    """Forget wishes that nobody answers and ring for those that wait; returns how many went."""
    forgotten = measuring.forget_unanswered()
    if TrainingMeasurement.objects.filter(measured_at=None, claimed_at=None).exists():
        ring_measuring()
    return forgotten


def run_training(job: TrainingJob) -> None:
    """Do one claimed training from its request to its registration.

    Raises:
        JobLost: The job belongs to somebody else by now.
        InvalidTransition: Likewise.
    """
    folder = workplace.run_folder(job)
    recorder = Recorder(job)
    try:
        request = _prepare(job, folder, recorder)
        outcome = _train(job, request, recorder)
        _settle(job, outcome, recorder)
    except RefusedError as refused:
        _fail(job, recorder, refused.code, **refused.params)
    except Problem as problem:  # the disk is full
        _fail(job, recorder, problem.code)
    finally:
        workplace.clear_runs(job)


def _train(job: TrainingJob, request: dict[str, Any], recorder: Recorder) -> Outcome:
    child = start_trainer(_share(job))
    try:
        return supervise(job, child, request, on_message=recorder, stands_aside=True)
    finally:
        child.stop()


def _share(job: TrainingJob) -> DeviceShare:
    return current_device().share(TrainingJob.queue_name, job.required_devices)


# --- before ---------------------------------------------------------------------------------------
def _prepare(job: TrainingJob, folder: Path, recorder: Recorder) -> dict[str, Any]:
    """Turn the frozen manifest into a request with local paths."""
    job.write_progress(phase="preparing")
    if not storage.free_space_ok():
        raise RefusedError("disk_full")
    base = _usable_base(job)
    workplace.tidy()
    resume_folder = _fetch_checkpoints(job, folder / "resume", recorder)
    if resume_folder is None and job.manifest.get("extends"):
        raise RefusedError("checkpoint_gone")
    images = _local_images(job)
    recorder.note("started" if job.epoch == 1 else "restarted", worker=current_worker().name)
    share = _share(job)
    manifest = job.manifest
    return {
        "job_id": str(job.pk),
        "base_folder": str(base.weights_folder()),
        "architecture": base.architecture,
        "method": job.type,
        "config": manifest["config"],
        "images": images,
        "trigger_word": manifest["trigger_word"],
        "output_folder": str(folder / "output"),
        "cache_folder": str(workplace.cache_folder(job)),
        "resume_folder": str(resume_folder) if resume_folder else None,
        "extends": manifest.get("extends", 0),
        "device": share.device,
        "threads": share.threads,
        "memory_bytes": settings.STUDIO_DEVICE_MEMORY_MB * 10**6,
        "checkpoint_seconds": settings.STUDIO_CHECKPOINT_SECONDS,
        "metadata": {
            "title": job.title,
            "base_name": base.name,
            "base_sha256": manifest["base"]["sha256"],
            "dataset_name": job.dataset_name,
        },
    }


def _usable_base(job: TrainingJob) -> DiffusionModel:
    """Return the base, if it is the one that was frozen and its owner may (still) use it.

    A training that has begun before goes on even when the base was deactivated meanwhile.
    """
    base = job.base_model
    if base is None or base.sha256 != job.manifest["base"]["sha256"]:
        raise RefusedError("model_unavailable", model=job.base_model_name)
    usable = DiffusionModel.objects.usable_by(job.owner).filter(pk=base.pk).exists()
    if job.epoch == 1 and not usable:
        raise RefusedError("model_unavailable", model=job.base_model_name)
    try:
        folder = base.weights_folder()
    except OSError as error:
        if storage.is_away(error):
            raise
        raise RefusedError("model_unavailable", model=job.base_model_name) from error
    if not (folder / INDEX_NAME).is_file():  # deleted, and swept
        raise RefusedError("model_unavailable", model=job.base_model_name)
    return base


def _local_images(job: TrainingJob) -> list[dict[str, Any]]:
    """Return the manifest's pictures with a local path each."""
    images, renewed_at = [], time.monotonic()
    for image in job.manifest["images"]:
        told = {name: value for name, value in image.items() if name != "key"}
        images.append({**told, "path": str(storage.local_copy(image["key"]))})
        if time.monotonic() - renewed_at > settings.STUDIO_HEARTBEAT_SECONDS:
            job.renew_lease()
            renewed_at = time.monotonic()
    return images


def _fetch_checkpoints(job: TrainingJob, folder: Path, recorder: Recorder) -> Path | None:
    """Bring the last resume states here, so that the trainer may fall back to the older one.

    Those of a training that this one extends count as well.

    Returns:
        The folder that holds them, or None when there is none.
    """
    found = False
    for checkpoint in job.states_to_begin_from():
        job.renew_lease()
        target = folder / f"step-{checkpoint.step:08d}"
        try:
            for key in files.checkpoint_keys(checkpoint):
                path = target / key.removeprefix(f"{checkpoint.prefix}/")
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(storage.local_copy(key), path)
        except OSError as error:
            # The last attempt rather goes back further than not on.
            if storage.is_away(error) and job.crash_count < MAX_CRASHES - 1:
                raise
            logger.warning("checkpoint %s cannot be read", checkpoint, exc_info=True)
            shutil.rmtree(target, ignore_errors=True)
            recorder.note("checkpoint_skipped", checkpoint=target.name)
            continue
        found = True
    return folder if found else None


# --- after ----------------------------------------------------------------------------------------
def _settle(job: TrainingJob, outcome: Outcome, recorder: Recorder) -> None:
    """Act on how the run ended."""
    if outcome.kind == "done":
        if job.step < job.total_steps:
            recorder.note("kept", step=job.step, total=job.total_steps)
        job.write_progress(phase="registering")
        outputs = outcome.message["outputs"]
        kohya = Path(outputs["kohya"]) if outputs.get("kohya") else None
        register_model(job, Path(outputs["weights"]), outputs.get("step", job.step), kohya)
        files.thin_checkpoints(job, keep=1)
        _note_cost(job, outcome.message.get("metrics") or {})
    elif outcome.kind == "error":
        params = outcome.message.get("params") or {}
        _fail(job, recorder, str(outcome.message.get("code")), **params)
    elif outcome.kind == "stopped":
        how = str(outcome.message.get("how"))
        job.settle_stopped(how)
        _note_stop(job, recorder, how)
    elif outcome.kind == "crashed":
        recorder.note("crashed", step=job.step)
        if job.status == Status.CANCELED:
            files.drop_checkpoints(job)


def _note_cost(job: TrainingJob, metrics: dict[str, Any]) -> None:
    """Keep what the training has shown of its cost, for those who plan one like it."""
    steps = metrics.get("steps", 0) - metrics.get("resumed_at_step", 0)
    if steps < FEWEST_STEPS or job.base_model is None:
        return
    estimates.note(
        job.base_model,
        job.manifest["config"],
        job.type,
        current_worker(),
        seconds_per_step=metrics["train_seconds"] / steps,
        peak_memory_bytes=metrics.get("peak_memory_bytes"),
    )


def _note_stop(job: TrainingJob, recorder: Recorder, how: str) -> None:
    if job.status == Status.CANCELED:
        recorder.note("nothing_to_keep" if how == "keep" else "canceled", step=job.step)
        files.drop_checkpoints(job)
    elif job.status == Status.PAUSED:
        recorder.note("paused", step=job.step)
    else:
        recorder.note("slice_over" if how == "slice" else "given_back", step=job.step)


def _fail(job: TrainingJob, recorder: Recorder, code: str, **params: Any) -> None:
    job.fail(code if code in ERRORS else "internal", **params)
    recorder.note("failed", step=job.step)
    files.thin_checkpoints(job, keep=1)

"""Runs requests for pictures on a worker: rows become a request, the engine paints.

The message that starts it is a doorbell without contents. Which job comes next, the lease and the
control of the child are the business of `studio_project.supervision`; the painting itself happens
in `generation_app.engine`, in a process of its own that stays warm between jobs.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import dramatiq
from django.conf import settings

from generation_app.engine.request import MODES, field_names
from generation_app.engine_host import EngineHost
from generation_app.models import GenerationJob
from generation_app.recording import Recorder
from models_app.models import DiffusionModel
from studio_project import storage
from studio_project.api import Problem
from studio_project.jobs import ERRORS, RefusedError
from studio_project.seats import seat_of
from studio_project.supervision import (
    Outcome,
    current_device,
    current_worker,
    note_warm,
    run_queue,
    supervise,
)

Status = GenerationJob.Status
KIND = GenerationJob.queue_name
# How a run of several ends for each of them without telling whose doing it was.
NOBODYS_FAULT = ("out_of_memory", "internal")
_engine = EngineHost()


@dramatiq.actor(queue_name=KIND)
def generate() -> None:
    """Hear the doorbell: paint until there is nothing to claim."""
    current_device().on_release(KIND, release_engine)
    run_queue(GenerationJob, run_generation)


def ring_doorbell() -> None:
    """Send the doorbell of the generation queue."""
    generate.send()


def release_engine() -> None:
    """Have the engine drop what it keeps warm, because a training needs the device."""
    _engine.release()
    note_warm([])


def stop_engine() -> None:
    """End this process's engine; the next job starts another."""
    _engine.stop()


def run_generation(job: GenerationJob) -> None:
    """Do one claimed request.

    Raises:
        JobLost: The job belongs to somebody else by now.
        InvalidTransition: Likewise.
    """
    folder = Path(settings.STUDIO_WORK_DIR) / "generation" / str(job.pk)
    missing = _missing_images(job)
    if not missing:  # the worker before was lost between the last picture and the end
        job.move(Status.COMPLETED, from_=[Status.RUNNING], epoch=job.epoch)
        return
    recorder = Recorder(job, missing)
    try:
        request = _prepare(job, missing, folder)
        child = seat_of(job, _engine.ready(current_device().share(KIND)))
        outcome = supervise(job, child, request, on_message=recorder)
        if child.is_shared and outcome.message.get("code") in NOBODYS_FAULT:
            job.settle_crashed()  # alone it may fit, or show whose fault it was
            return
        _settle(job, outcome, first_step_at=recorder.first_step_at)
        if outcome.settled and not child.alive:
            note_warm([])
    except RefusedError as refused:
        job.fail(refused.code, **refused.params)
    except Problem as problem:  # the disk is full
        job.fail(problem.code if problem.code in ERRORS else "internal")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _missing_images(job: GenerationJob) -> list[int]:
    """Return which pictures are still to be painted; after a crash some are there already."""
    painted = set(job.images.values_list("index", flat=True))
    return [index for index in range(job.parameters["num_images"]) if index not in painted]


def _prepare(job: GenerationJob, missing: list[int], folder: Path) -> dict[str, Any]:
    """Turn the resolved parameters into a request with local paths."""
    if not storage.free_space_ok():
        raise RefusedError("disk_full")
    base, loras = _usable_models(job)
    folder.mkdir(parents=True, exist_ok=True)
    share, free_bytes = current_device().share(KIND), current_device().free_bytes(KIND)
    parameters = job.parameters
    names = field_names(job.mode) - {"loras", "seed", "num_images"}
    request = {name: parameters[name] for name in names if name in parameters}
    if "prompts" in parameters:
        request["prompts"] = [parameters["prompts"][index] for index in missing]
    for field in MODES[job.mode].inputs:
        request[field] = str(storage.local_copy(getattr(job, field).key))
    return {
        **request,
        "job_id": str(job.pk),
        "mode": job.mode,
        "base_folder": str(base.weights_folder()),
        "base_sha256": base.sha256,
        "architecture": base.architecture,
        "loras": [
            {
                "path": str(lora.weights_file()),
                "sha256": lora.sha256,
                "weight": weight,
                "name": lora.name,
            }
            for lora, weight in loras
        ],
        "model_name": job.model_name,
        "seeds": [parameters["seeds"][index] for index in missing],
        "output_folder": str(folder),
        "device": share.device,
        "threads": share.threads,
        # What a training beside it leaves; 0 is all there is.
        "memory_bytes": free_bytes or 0,
        "preview": True,
        "together": job.room(current_worker(), free_bytes),
        "metadata": {"job_id": str(job.pk), "base_name": base.name},
    }


def _usable_models(
    job: GenerationJob,
) -> tuple[DiffusionModel, list[tuple[DiffusionModel, float]]]:
    """Return the base and the LoRAs with their weights, if the owner may still use them all.

    Raises:
        RefusedError: `model_unavailable`.
    """
    entries = job.parameters["loras"]
    wanted = {job.base_model_id, *(entry["id"] for entry in entries)}
    rows = DiffusionModel.objects.usable_by(job.owner).filter(pk__in=wanted - {None})
    usable = {model.pk: model for model in rows}
    if wanted - set(usable):
        raise RefusedError("model_unavailable", model=job.model_title or job.model_name)
    try:
        for model in usable.values():
            model.weights_folder()
    except OSError as error:
        if storage.is_away(error):
            raise
        raise RefusedError("model_unavailable", model=job.model_title or job.model_name) from error
    base_id = job.base_model_id or 0
    return usable[base_id], [(usable[entry["id"]], entry["weight"]) for entry in entries]


def _settle(job: GenerationJob, outcome: Outcome, *, first_step_at: float | None) -> None:
    """Act on how the run ended; pictures that were finished stay in any case."""
    if outcome.kind == "done":
        job.move(
            Status.COMPLETED,
            from_=[Status.RUNNING],
            epoch=job.epoch,
            metrics={**outcome.message.get("metrics", {}), "first_step_at": first_step_at},
        )
    elif outcome.kind == "error":
        code = str(outcome.message.get("code"))
        params = outcome.message.get("params") or {}
        job.fail(code if code in ERRORS else "internal", **params)
    elif outcome.kind == "stopped":
        job.settle_stopped(str(outcome.message.get("how")))

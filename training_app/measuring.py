"""A worker measures what a step of a training costs: a few steps on made-up pictures.

It uses a device that nobody else uses at the moment, and leaves it at once when a training comes or
others want its room; what was wanted is then measured later. No picture and no word of a user is
read.
"""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db.models import Q
from django.utils import timezone

from studio_project.supervision import current_device, current_worker, worker_stopping
from training_app import estimates
from training_app.launching import start_trainer
from training_app.models import TrainingJob, TrainingMeasurement

logger = logging.getLogger(__name__)

KIND = "measuring"
LONGEST_SECONDS = 300.0
LOOK_SECONDS = 0.25
TAKEN_FOR = timedelta(seconds=LONGEST_SECONDS + 60)


def measure_wanted() -> None:
    """Measure what is wanted, one after the other, while the device is free."""
    device = current_device()
    while not worker_stopping():
        row = device.take(
            KIND,
            lambda free: None if device.busy else _claim(free),
            lambda row: estimates.required_bytes(row.base_model, row.config, row.method),
        )
        if row is None:
            return
        try:
            _measure(row)
        finally:
            device.give_back(KIND)


def _claim(free_bytes: int | None) -> TrainingMeasurement | None:
    """Take the oldest wanted measurement whose base fits the device."""
    now = timezone.now()
    free = Q(claimed_at=None) | Q(claimed_at__lt=now - TAKEN_FOR)
    rows = TrainingMeasurement.objects.filter(free, measured_at=None)
    if free_bytes is not None:
        rows = rows.filter(base_model__size_bytes__lte=free_bytes)
    for row in rows.select_related("base_model").order_by("wanted_at")[:5]:
        mine = TrainingMeasurement.objects.filter(free, pk=row.pk, measured_at=None)
        if mine.update(claimed_at=now):
            return row
    return None


def _measure(row: TrainingMeasurement) -> None:
    folder = Path(settings.STUDIO_WORK_DIR) / "measuring" / uuid.uuid4().hex
    folder.mkdir(parents=True)
    try:
        answer = _ask_child(_request(row, folder))
    except OSError:
        logger.warning("measurement %s: the base cannot be read", row.pk, exc_info=True)
        answer = {"type": "error"}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if answer is None:  # others came first, or the worker stops: another time
        TrainingMeasurement.objects.filter(pk=row.pk).update(claimed_at=None)
        return
    metrics = answer.get("metrics") or {}
    seconds, code = metrics.get("seconds_per_step"), str(answer.get("code") or "")
    estimates.note(
        row.base_model,
        row.config,
        row.method,
        current_worker(),
        seconds_per_step=seconds,
        peak_memory_bytes=metrics.get("peak_memory_bytes"),
        error_code=code or ("" if seconds else "internal"),
    )


def _ask_child(request: dict[str, Any]) -> dict[str, Any] | None:
    """Let a trainer do its dry run; None if it had to be broken off."""
    device = current_device()
    share = device.share(TrainingJob.queue_name)
    child = start_trainer(share)
    try:
        child.send({"cmd": "run", "request": request})
        deadline = time.monotonic() + LONGEST_SECONDS
        kind = TrainingJob.queue_name
        while not (worker_stopping() or device.runs(kind) or device.is_wanted(KIND)):
            message = child.messages.get(LOOK_SECONDS)
            if message is not None and message["type"] in ("done", "error"):
                return message
            if child.messages.finished or time.monotonic() > deadline:
                return {"type": "error"}
        return None
    finally:
        child.kill()


def _request(row: TrainingMeasurement, folder: Path) -> dict[str, Any]:
    side = int(row.config["resolution"])
    share = current_device().share(TrainingJob.queue_name)
    # Of pictures only the sizes are looked at; a batch is full of them.
    pictures = [
        {
            "id": number,
            "path": "",
            "caption": "",
            "pixel_sha256": f"{number:064x}",
            "width": side,
            "height": side,
        }
        for number in range(int(row.config["train_batch_size"]))
    ]
    return {
        "dry_run": True,
        "job_id": uuid.uuid4().hex,
        "base_folder": str(row.base_model.weights_folder()),
        "architecture": row.base_model.architecture,
        "method": row.method,
        "config": row.config,
        "images": pictures,
        "trigger_word": row.config["trigger_word"],
        "output_folder": str(folder / "output"),
        "cache_folder": str(folder / "cache"),
        "resume_folder": None,
        "device": share.device,
        "threads": share.threads,
        "memory_bytes": settings.STUDIO_DEVICE_MEMORY_MB * 10**6,
    }


def forget_unanswered() -> int:
    """Drop wishes that nobody could answer; returns how many."""
    oldest = timezone.now() - estimates.FORGOTTEN_AFTER
    waiting = TrainingMeasurement.objects.filter(measured_at=None, wanted_at__lt=oldest)
    return waiting.filter(Q(claimed_at=None) | Q(claimed_at__lt=oldest)).delete()[0]

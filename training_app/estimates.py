"""What a training will take: steps, passes, time and memory.

Time and memory are measured: by a few steps that a worker does with made-up pictures when somebody
asks (see `measuring`), or by an earlier training of the same kind. Measurements hold for one kind
of device, one base and the settings that decide the cost; nothing of a user is in them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import Any

from django.db import transaction
from django.utils import timezone

from models_app.models import DiffusionModel
from studio_project import site_marker
from studio_project.jobs.workers import live_workers
from studio_project.models import User, Worker
from training_app.models import TrainingJob, TrainingMeasurement

# What a step costs depends on these, and on the method, the base and the device.
COST_FIELDS = (
    "tune", "rank", "targets", "use_dora", "train_text_encoder", "use_ema", "optimizer", "loss",
    "gradient_checkpointing", "mixed_precision", "resolution", "train_batch_size",
    "gradient_accumulation_steps", "num_devices",
)  # fmt: skip
# What a training holds for each byte of its base's files, where nobody has measured it. Adapters:
# the frozen base, and half as much again for activations, adapters and their optimizer's state. A
# whole network learns in fp32, so each of its values takes 16 bytes: weight, gradient and two
# optimizer states of 4; files mostly hold values of 2 bytes, which makes 8. That is too much for
# files in fp32 and for optimizers with less state; all it does there is to keep others away.
MEMORY_FACTORS = {"adapters": 1.5, "unet": 8.0}
FORGOTTEN_AFTER = timedelta(minutes=10)

# A whole configuration, by name of its settings.
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Cost:
    """What is known of the cost of a training.

    Attributes:
        seconds_per_step: None while nothing is known.
        peak_memory_bytes: None while nothing is known.
        source: `measured`, `history` or "".
        fits: False if a worker tried and had too little memory.
        is_coming: Whether a worker has been asked to measure it.
    """

    seconds_per_step: float | None = None
    peak_memory_bytes: int | None = None
    source: str = ""
    fits: bool = True
    is_coming: bool = False

    def as_dict(self, steps: int) -> dict[str, Any]:
        """Return the members of `CostSerializer` for a training of so many steps."""
        return {
            "seconds": self.seconds(steps),
            "seconds_per_step": self.seconds_per_step,
            "peak_memory_bytes": self.peak_memory_bytes,
            "fits": self.fits,
            "known_from": self.source,
            "measuring": self.is_coming,
        }

    def seconds(self, steps: int) -> int | None:
        """Return the time of so many steps."""
        return math.ceil(self.seconds_per_step * steps) if self.seconds_per_step else None


def key_of(config: Config, method: str) -> str:
    """Return what all trainings that cost the same per step have in common.

    Another version of the code measures anew.
    """
    parts = [site_marker.code_version(), method, config["prior_loss_weight"] > 0]
    parts += [config[name] for name in COST_FIELDS]
    return sha256(json.dumps(parts).encode()).hexdigest()


def device_name(worker: Worker) -> str:
    """Return what a worker's device is called in measurements."""
    return worker.device_name or worker.device


def cost_of(base: DiffusionModel, config: Config, method: str) -> Cost:
    """Return what is known: measured on a device that is here now, else from earlier trainings."""
    rows = TrainingMeasurement.objects.filter(base_sha256=base.sha256, key=key_of(config, method))
    here = {device_name(worker) for worker in live_workers(TrainingJob.queue_name)}
    measured = rows.filter(device_name__in=here, measured_at__isnull=False)
    row = measured.order_by("-measured_at").first()
    if row is not None and row.error_code == "out_of_memory":
        return Cost(fits=False, source="measured")
    if row is not None and row.seconds_per_step:
        return Cost(row.seconds_per_step, row.peak_memory_bytes, "measured")
    is_coming = row is None and rows.filter(measured_at=None).exists()
    past = TrainingJob.objects.filter(
        base_model=base,
        type=method,
        images_per_second__gt=0,
        resolved_config__resolution=config["resolution"],
    )
    speed = past.order_by("-created_at").values_list("images_per_second", flat=True).first()
    if speed:
        batch = config["train_batch_size"] * config["gradient_accumulation_steps"]
        return Cost(batch / speed, None, "history", is_coming=is_coming)
    return Cost(is_coming=is_coming)


def required_bytes(base: DiffusionModel, config: Config, method: str) -> int:
    """Return how much of a device's memory a training is given.

    It is what was measured, if that is so for every device that may do the training; else it is
    estimated, at most as a whole device: an estimate makes room, it refuses no training.
    """
    living = [
        worker
        for worker in live_workers(TrainingJob.queue_name)
        if worker.num_devices >= config["num_devices"]
    ]
    able = [worker for worker in living if not worker.is_cpu] or living
    names = {device_name(worker) for worker in able}
    measured = TrainingMeasurement.objects.filter(
        base_sha256=base.sha256,
        key=key_of(config, method),
        device_name__in=names,
        peak_memory_bytes__gt=0,
    )
    peaks = {row.device_name: row.peak_memory_bytes or 0 for row in measured}
    largest = max((worker.memory_bytes for worker in able), default=0)
    # On a CPU the whole process was measured, of which libraries are the most.
    if names and peaks.keys() == names and not able[0].is_cpu:
        # Where there is more memory the trainer uses more, but needs no more.
        return min(largest or base.size_bytes, *peaks.values())
    estimate = int(base.size_bytes * MEMORY_FACTORS[config["tune"]])
    return max(base.size_bytes, min(estimate, largest))


def want(user: User, base: DiffusionModel, config: Config, method: str) -> bool:
    """Ask a worker to measure what a training costs; a user waits for one answer at a time.

    Returns:
        Whether an answer may come: there is a worker, and it has not tried in vain.
    """
    if not live_workers(TrainingJob.queue_name):
        return False
    key = key_of(config, method)
    rows = TrainingMeasurement.objects.filter(base_sha256=base.sha256, key=key)
    if rows.filter(measured_at__isnull=False).exists():
        return False
    waiting = TrainingMeasurement.objects.filter(wanted_by=user, claimed_at=None, measured_at=None)
    with transaction.atomic():
        waiting.exclude(base_sha256=base.sha256, key=key).delete()
        _row, is_new = TrainingMeasurement.objects.get_or_create(
            base_sha256=base.sha256,
            key=key,
            device_name="",
            defaults={
                "base_model": base,
                "method": method,
                "config": dict(config),
                "wanted_by": user,
            },
        )
    return is_new or rows.filter(measured_at=None).exists()


def note(
    base: DiffusionModel,
    config: Config,
    method: str,
    worker: Worker,
    *,
    seconds_per_step: float | None = None,
    peak_memory_bytes: int | None = None,
    error_code: str = "",
) -> None:
    """Write down what was measured on a worker's device; who waited for it finds it."""
    key = key_of(config, method)
    with transaction.atomic():
        TrainingMeasurement.objects.update_or_create(
            base_sha256=base.sha256,
            key=key,
            device_name=device_name(worker),
            defaults={
                "base_model": base,
                "method": method,
                "config": dict(config),
                "measured_at": timezone.now(),
                "seconds_per_step": seconds_per_step,
                "peak_memory_bytes": peak_memory_bytes,
                "error_code": error_code,
            },
        )
        TrainingMeasurement.objects.filter(
            base_sha256=base.sha256, key=key, device_name=""
        ).delete()

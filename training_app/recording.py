"""Turns what a trainer says into rows and stored files, under the claim of one worker.

Every write stands in a transaction with the guarded progress write of its job, so a worker that has
lost the job leaves nothing behind. A message may come twice (after the database was away): keys and
rows are named by step, so the second time changes nothing.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from django.db import transaction
from django.utils import timezone
from PIL import Image

from models_app.thumbnails import make_thumbnail
from studio_project import events, storage
from studio_project.child_output import Message
from training_app import files, metrics
from training_app.models import (
    TrainingCheckpoint,
    TrainingJob,
    TrainingNote,
    TrainingSample,
)

WHOLE_CHECKPOINTS = 2


class Recorder:
    """Writes down one run of a training. Called with each message of the trainer.

    Args:
        job: The claimed job.
    """

    def __init__(self, job: TrainingJob) -> None:
        self.job = job
        self.folder = f"jobs/{job.pk}/{job.epoch}"
        self._first: tuple[int, float] | None = None
        self._handlers = {
            "phase": self._phase,
            "step": self._step,
            "sample": self._sample,
            "checkpoint": self._checkpoint,
            "note": self._note,
            "validation": self._validation,
            "aside": self._aside,
            "back": self._back,
        }

    def __call__(self, message: Message) -> None:
        """Record one message; kinds that say nothing to a reader are passed over.

        Raises:
            JobLost: The job belongs to somebody else by now.
            Problem: `disk_full`.
        """
        handler = self._handlers.get(message["type"])
        if handler is not None:
            handler(message)

    def note(self, code: str, **params: Any) -> None:
        """Add a line to the timeline."""
        TrainingNote.objects.create(job=self.job, code=code, params=params)

    def _note(self, message: Message) -> None:
        with transaction.atomic():
            self.job.write_progress()
            self.note(str(message["code"])[:40], **message.get("params", {}))

    def _phase(self, message: Message) -> None:
        if message["phase"] != self.job.phase:
            self.job.write_progress(phase=message["phase"])

    def _step(self, message: Message) -> None:
        step, total = message["step"], message["total_steps"]
        points = list(metrics.points_of(message))
        with transaction.atomic():
            self.job.write_progress(
                step=step,
                total_steps=total,
                progress=step / total if total else 0.0,
                loss=message.get("loss"),
                learning_rate=message.get("learning_rate"),
                images_per_second=message.get("images_per_second"),
                eta_seconds=self._eta_seconds(step, total),
                phase="training",
            )
            if self._first is None:
                # A resumed run goes back to its checkpoint; what came after it is done again.
                begin = min((point[0] for point in points), default=step)
                metrics.forget_from(self.job, begin)
                self._first = (begin - 1, time.monotonic())
            metrics.write(self.job, points)

    def _validation(self, message: Message) -> None:
        """Add a held-out loss; those of steps that are done again are replaced."""
        step = message["step"]
        earlier = [point for point in self.job.held_out_losses if point[0] < step]
        self.job.write_progress(held_out_losses=[*earlier, [step, message["loss"]]])

    def _aside(self, message: Message) -> None:
        """Show that others have the device; when the rest will be done is not known now."""
        self.job.write_progress(phase="aside", eta_seconds=None)

    def _back(self, message: Message) -> None:
        """Count the time aside for nothing, and tell of it in one line until something happens."""
        seconds = message["seconds"]
        with transaction.atomic():
            self.job.write_progress()
            last = self.job.notes.order_by("created_at", "id").last()
            if last is None or last.code != "stood_aside":
                last = TrainingNote(job=self.job, code="stood_aside", params={"seconds": 0})
            last.params = {"seconds": round(last.params["seconds"] + seconds, 1)}
            last.save()
        if self._first is not None:
            self._first = (self._first[0], self._first[1] + seconds)

    def _eta_seconds(self, step: int, total: int) -> int | None:
        if self._first is None or step <= self._first[0]:
            return None
        seconds = (time.monotonic() - self._first[1]) / (step - self._first[0])
        return round(seconds * max(0, total - step))

    def _sample(self, message: Message) -> None:
        step, index, path = message["step"], message["index"], Path(message["path"])
        name = f"{self.folder}/sample-{step:08d}-{index}"
        with Image.open(path) as picture:
            width, height = picture.size
        with path.open("rb") as handle:
            thumbnail = make_thumbnail(handle)
        size_bytes = storage.save(f"{name}.png", path)
        storage.save(f"{name}.webp", thumbnail)
        with transaction.atomic():
            self.job.write_progress()
            old = self.job.samples.filter(step=step, index=index).first()
            TrainingSample.objects.update_or_create(
                job=self.job,
                step=step,
                index=index,
                defaults={
                    "prompt": message.get("prompt", ""),
                    "seed": message.get("seed", 0),
                    "key": f"{name}.png",
                    "thumbnail_key": f"{name}.webp",
                    "width": width,
                    "height": height,
                    "size_bytes": size_bytes,
                },
            )
            self._announce_sample(step, index)
        if old is not None and old.key != f"{name}.png":
            files.remove([old.key, old.thumbnail_key])

    def _announce_sample(self, step: int, index: int) -> None:
        event = {
            "type": "training_job.sampled",
            "id": str(self.job.pk),
            "version": self.job.version,
            "ts": timezone.now().isoformat(),
            "step": step,
            "index": index,
        }
        events.publish(event, users=[self.job.owner_id])

    def _checkpoint(self, message: Message) -> None:
        step, folder = message["step"], Path(message["folder"])
        prefix = f"{self.folder}/step-{step:08d}"
        for entry in message["files"]:
            self.job.renew_lease()
            storage.save(f"{prefix}/{entry['name']}", folder / entry["name"])
        with transaction.atomic():
            self.job.write_progress()
            old = self.job.checkpoints.filter(step=step).first()
            TrainingCheckpoint.objects.update_or_create(
                job=self.job,
                step=step,
                defaults={
                    "epoch": self.job.epoch,
                    "prefix": prefix,
                    "files": message["files"],
                    "is_whole": True,
                    "size_bytes": sum(entry["size"] for entry in message["files"]),
                    "held_out_loss": message.get("held_out_loss"),
                },
            )
        if old is not None and old.prefix != prefix:
            files.remove(files.checkpoint_keys(old))
        files.thin_checkpoints(self.job, keep=WHOLE_CHECKPOINTS)

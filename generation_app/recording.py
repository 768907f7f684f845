"""Turns what the engine says about one request into rows, files, previews and events.

Every row is written in a transaction with the guarded progress write of its job, so a worker that
has lost the job leaves nothing behind.
"""

from __future__ import annotations

import base64
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.db import transaction
from django.db.models import F
from django.utils import timezone

from generation_app.comparing import compare
from generation_app.models import GeneratedImage, GenerationJob
from models_app.thumbnails import make_thumbnail
from studio_project import events, storage, supervision
from studio_project.child_output import Message
from studio_project.models import User

PREVIEW_SECONDS = 0.5


class Recorder:
    """Writes down one run of a request. Called with each message of the engine.

    Args:
        job: The claimed job.
        missing: Which of the request's pictures this run paints, by index; a run that goes on
            after a crash paints only what is not there yet.
    """

    def __init__(self, job: GenerationJob, missing: list[int]) -> None:
        self.job, self.missing = job, missing
        # When the first step began, by this worker's clock; part of what the job's metrics tell.
        self.first_step_at: float | None = None
        self._started_at = 0.0
        self._previewed_at = 0.0
        self._handlers = {
            "phase": self._phase,
            "step": self._step,
            "preview": self._preview,
            "image": self._image,
            "warm": self._warm,
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

    def _phase(self, message: Message) -> None:
        if message["phase"] == "denoising" and self.first_step_at is None:
            self.first_step_at = time.time()
        if message["phase"] != self.job.phase:
            self.job.write_progress(phase=message["phase"])

    def _step(self, message: Message) -> None:
        """Write the progress over the whole request, pictures of earlier runs included."""
        now, step, total = time.monotonic(), message["step"], max(1, message["total_steps"])
        self._started_at = self._started_at or now
        painted = self.job.parameters["num_images"] - len(self.missing)
        steps_per_image = total // len(self.missing)
        before = painted * steps_per_image
        eta_seconds = None
        if step > 1 and now > self._started_at:
            eta_seconds = round((now - self._started_at) / (step - 1) * (total - step))
        self.job.write_progress(
            step=before + step,
            total_steps=before + total,
            progress=(before + step) / (before + total),
            eta_seconds=eta_seconds,
            phase="denoising",
        )

    def _preview(self, message: Message) -> None:
        now = time.monotonic()
        if now - self._previewed_at < PREVIEW_SECONDS:
            return
        self._previewed_at = now
        events.put_preview(self.job.pk, base64.b64decode(message["data"]))
        event = {
            "type": "generation_job.previewed",
            "id": str(self.job.pk),
            "version": self.job.version,
            "ts": timezone.now().isoformat(),
            "step": self.job.step,
            "image_index": self.missing[message["image_index"]],
        }
        events.publish(event, users=[self.job.owner_id])

    def _image(self, message: Message) -> None:
        index, path = self.missing[message["index"]], Path(message["path"])
        name = f"jobs/{self.job.pk}/{self.job.epoch}/image-{index:03d}"
        key, thumbnail_key = f"{name}{path.suffix}", f"{name}-small.webp"
        # Of a clip the first frame stands for it.
        with Path(message.get("still") or path).open("rb") as handle:
            thumbnail = make_thumbnail(handle)
        size_bytes = storage.save(key, path)
        storage.save(thumbnail_key, thumbnail)
        animation_key = ""
        if "animation" in message:
            animation_key = f"{name}.webp"
            size_bytes += storage.save(animation_key, Path(message["animation"]))
        difference = compare(self.job.remake_of, path) if self.job.remake_of else None
        with transaction.atomic():
            _image, is_new = GeneratedImage.objects.get_or_create(
                job=self.job,
                index=index,
                defaults={
                    "owner_id": self.job.owner_id,
                    "key": key,
                    "thumbnail_key": thumbnail_key,
                    "animation_key": animation_key,
                    "seed": message["seed"],
                    "width": message["width"],
                    "height": message["height"],
                    "parameters": _told(message.get("parameters", {}), self.job),
                    "difference": difference,
                    "size_bytes": size_bytes,
                    # When its file was finished; the row follows some milliseconds later.
                    "created_at": datetime.fromtimestamp(path.stat().st_mtime, UTC),
                },
            )
            if is_new:
                User.objects.filter(pk=self.job.owner_id).update(
                    stored_bytes=F("stored_bytes") + size_bytes
                )
            self.job.write_progress()  # last, so that its event counts the picture

    def _warm(self, message: Message) -> None:
        supervision.note_warm(message.get("models", []))


def _told(parameters: dict[str, Any], job: GenerationJob) -> dict[str, Any]:
    """Add the names a person knows the models by to what the engine says of a picture."""
    asked = {"id": job.model_id, "name": job.model_name, "title": job.model_title}
    return {**parameters, "loras": job.parameters["loras"], "asked_model": asked}

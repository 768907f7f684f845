"""A request for pictures or clips, what it starts from and what it made.

All of them belong to one user and are never shared. A picture keeps the name of the model that
painted it, whatever becomes of the model.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, ClassVar, Self

from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from generation_app.company import room_for
from models_app.models import DiffusionModel
from studio_project.jobs import Candidate, Job
from studio_project.models import User, Worker

MEDIA_TYPES = {
    ".png": "image/png",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".mp4": "video/mp4",
}


class InputPictureQuerySet(models.QuerySet):
    """Input pictures by whom they belong to."""

    def visible_to(self, user: User | AnonymousUser) -> Self:
        """Keep the user's own."""
        return self.filter(owner=user) if user.is_authenticated else self.none()

    def unused(self) -> Self:
        """Keep those that no request starts from."""
        return self.filter(started=None, masked=None)


class InputPicture(models.Model):
    """A picture or a mask that requests start from: checked, flattened, private, kept once.

    It is a copy, so a request can be made again whatever becomes of the gallery picture or of the
    dataset it was taken from. Those that no request needs go after a day.
    """

    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="input_pictures"
    )
    key = models.CharField(max_length=200, unique=True)
    width = models.PositiveIntegerField()
    height = models.PositiveIntegerField()
    size_bytes = models.PositiveBigIntegerField()
    format = models.CharField(max_length=10)
    pixel_sha256 = models.CharField(max_length=64)
    created_at = models.DateTimeField(default=timezone.now)
    used_at = models.DateTimeField(default=timezone.now)

    objects = InputPictureQuerySet.as_manager()

    class Meta:
        ordering = ("-created_at", "-id")
        constraints = [
            models.UniqueConstraint(
                fields=("owner", "pixel_sha256"), name="one_input_picture_per_owner"
            ),
        ]
        indexes = [models.Index(fields=("used_at",), name="input_picture_used")]

    def __str__(self) -> str:
        return f"{self.pk} of {self.owner_id}"


class GenerationJob(Job):
    """One request, with every value resolved when it was sent."""

    class Mode(models.TextChoices):
        """What is asked for; the values are the last part of the API's path."""

        TEXT_TO_IMAGE = "text-to-image", _("Text to image")
        IMAGE_TO_IMAGE = "image-to-image", _("Picture to picture")
        INPAINT = "inpaint", _("Part of a picture")
        IMAGE_TO_VIDEO = "image-to-video", _("Picture to video")

    queue_name: ClassVar[str] = "generation"
    noun: ClassVar[str] = "generation_job"
    candidate_rows: ClassVar[tuple[str, ...]] = ("base_model",)

    mode = models.CharField(max_length=20, choices=Mode.choices, default=Mode.TEXT_TO_IMAGE)
    # What was asked for: a base model or a LoRA (which brings its base).
    model = models.ForeignKey(
        DiffusionModel, on_delete=models.SET_NULL, null=True, related_name="generation_jobs"
    )
    model_name = models.CharField(max_length=200)
    model_title = models.CharField(max_length=200, blank=True)
    # What the pictures are painted with: the pipeline, and every model whose files are needed.
    base_model = models.ForeignKey(
        DiffusionModel, on_delete=models.SET_NULL, null=True, related_name="+"
    )
    needed_models = models.ManyToManyField(DiffusionModel, related_name="+")
    # What it starts from.
    image = models.ForeignKey(
        InputPicture, on_delete=models.PROTECT, null=True, blank=True, related_name="started"
    )
    mask_image = models.ForeignKey(
        InputPicture, on_delete=models.PROTECT, null=True, blank=True, related_name="masked"
    )
    # The picture that it makes again, to be compared with.
    remake_of = models.ForeignKey(
        "GeneratedImage", on_delete=models.SET_NULL, null=True, blank=True, related_name="remakes"
    )
    parameters = models.JSONField(default=dict)
    metrics = models.JSONField(default=dict, blank=True)
    # What was foreseen when it was sent: from its claim on, and for a model that is not ready.
    expected_seconds = models.FloatField(null=True, blank=True)
    expected_load_seconds = models.FloatField(null=True, blank=True)
    # What it adds to a batch that it shares.
    expected_joint_seconds = models.FloatField(null=True, blank=True)
    # Equal for requests that may be denoised in one batch (see `company`); empty runs alone.
    joint_key = models.CharField(max_length=64, blank=True, default="", editable=False)

    @property
    def title(self) -> str:
        """What its owner knows the request by: the beginning of the prompt."""
        return str(self.parameters.get("prompt", ""))[:80] or str(self.pk)

    def event_fields(self) -> dict[str, Any]:
        """Add how many pictures there are."""
        return {"images": self.images.live().count()}

    def candidate(self, worker: Worker, free_bytes: int | None) -> Candidate:
        """Say whether the worker has the base ready, what was foreseen, and who may come along."""
        return Candidate(
            self.pk,
            self.passed_over_at,
            is_ready=self.base_model is None or self.base_model.name in worker.warm,
            seconds=self.expected_seconds,
            load_seconds=self.expected_load_seconds or 0.0,
            joint_key=self.company_key,
            size=self.parameters["num_images"] if self.company_key else 1,
            room=self.room(worker, free_bytes),
        )

    @property
    def company_key(self) -> str:
        """Equal for requests that may share a batch now; empty for one that runs alone.

        What has crashed does: the fault may be its own, or that of its company.
        """
        return "" if self.crash_count else self.joint_key

    def room(self, worker: Worker, free_bytes: int | None) -> int:
        """How many pictures may be at work at a time in a run that begins with this one."""
        if not self.company_key:
            return 1
        return room_for(self.parameters, self.required_bytes, worker, free_bytes)

    def checkpoint_step(self) -> int:
        """Return how many pictures a crash would not lose."""
        return self.images.count()


class GeneratedImageQuerySet(models.QuerySet):
    """Pictures by whom they belong to."""

    def live(self) -> Self:
        """Keep what was not deleted."""
        return self.filter(deleted_at=None)

    def visible_to(self, user: User | AnonymousUser) -> Self:
        """Keep the user's own pictures."""
        if not user.is_authenticated:
            return self.none()
        return self.live().filter(owner=user)


class GeneratedImage(models.Model):
    """One picture, with everything needed to paint it again."""

    job = models.ForeignKey(GenerationJob, on_delete=models.CASCADE, related_name="images")
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="generated_images"
    )
    index = models.PositiveIntegerField()
    key = models.CharField(max_length=300)
    thumbnail_key = models.CharField(max_length=300, blank=True)
    # Of a clip: the same frames as a picture that moves.
    animation_key = models.CharField(max_length=300, blank=True)
    seed = models.BigIntegerField()
    width = models.PositiveIntegerField()
    height = models.PositiveIntegerField()
    parameters = models.JSONField(default=dict)
    # How far it is from the picture it was made again from (see `comparing`), else null.
    difference = models.JSONField(null=True, blank=True)
    size_bytes = models.PositiveBigIntegerField(default=0)
    created_at = models.DateTimeField(default=timezone.now)
    deleted_at = models.DateTimeField(null=True, blank=True)

    objects = GeneratedImageQuerySet.as_manager()

    class Meta:
        ordering = ("-created_at", "-id")
        indexes = [
            models.Index(fields=("owner", "-created_at", "-id"), name="image_by_owner"),
        ]
        constraints = [
            models.UniqueConstraint(fields=("job", "index"), name="one_image_per_index"),
        ]

    def __str__(self) -> str:
        return f"{self.job_id} #{self.index}"

    @property
    def suffix(self) -> str:
        """How its file's name ends, with the dot."""
        return PurePosixPath(self.key).suffix

    @property
    def media_type(self) -> str:
        """What its file is, for HTTP."""
        return MEDIA_TYPES.get(self.suffix, "image/png")

    @property
    def is_video(self) -> bool:
        """Whether it is a clip."""
        return self.media_type.startswith("video/")

    @property
    def keys(self) -> list[str]:
        """Every file it has."""
        return [key for key in (self.key, self.thumbnail_key, self.animation_key) if key]


class CheckpointChoice(models.Model):
    """The model that one user's AUTOMATIC1111 clients paint with until they name another."""

    owner = models.OneToOneField(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+"
    )
    model = models.ForeignKey(DiffusionModel, on_delete=models.CASCADE, related_name="+")

    def __str__(self) -> str:
        return f"{self.owner_id}: {self.model_id}"

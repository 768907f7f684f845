"""A request for pictures and the pictures it made.

Both belong to one user and are never shared. A picture keeps the name of the model that painted it,
whatever becomes of the model.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from models_app.models import DiffusionModel
from studio_project.jobs import Job
from studio_project.models import User


class GenerationJob(Job):
    """One request, with every value resolved when it was sent."""

    class Mode(models.TextChoices):
        """What is asked for; the values are the last part of the API's path."""

        TEXT_TO_IMAGE = "text-to-image", _("Text to image")

    queue_name: ClassVar[str] = "generation"
    noun: ClassVar[str] = "generation_job"

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
    parameters = models.JSONField(default=dict)
    metrics = models.JSONField(default=dict, blank=True)
    # What was foreseen when it was sent: from its claim on, and for a model that is not ready.
    expected_seconds = models.FloatField(null=True, blank=True)
    expected_load_seconds = models.FloatField(null=True, blank=True)

    @property
    def title(self) -> str:
        """What its owner knows the request by: the beginning of the prompt."""
        return str(self.parameters.get("prompt", ""))[:80] or str(self.pk)

    def event_fields(self) -> dict[str, Any]:
        """Add how many pictures there are."""
        return {"images": self.images.live().count()}

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
    seed = models.BigIntegerField()
    width = models.PositiveIntegerField()
    height = models.PositiveIntegerField()
    parameters = models.JSONField(default=dict)
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


class CheckpointChoice(models.Model):
    """The model that one user's AUTOMATIC1111 clients paint with until they name another."""

    owner = models.OneToOneField(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+"
    )
    model = models.ForeignKey(DiffusionModel, on_delete=models.CASCADE, related_name="+")

    def __str__(self) -> str:
        return f"{self.owner_id}: {self.model_id}"

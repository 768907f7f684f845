"""A training and what it leaves behind: checkpoints, metrics, samples and its timeline.

The link from a job to the model it made lies here, so that `models_app` never knows training. The
legal transitions of a job are those of `studio_project.jobs.Job`.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, ClassVar

from django.conf import settings
from django.db import models
from django.db.models import QuerySet
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from datasets_app.models import Dataset
from models_app.models import DiffusionModel
from studio_project.jobs import Job
from training_app.trainer.rhythm import checkpoint_rhythm

# How long one may still choose, or go on, after a training has ended.
KEPT_AFTER_END = timedelta(days=14)


class TrainingJob(Job):
    """One training of a base model on a dataset, frozen when it starts."""

    class Type(models.TextChoices):
        """What is trained; the values are those of the model that comes out."""

        LORA = "lora", _("LoRA")
        DREAMBOOTH = "dreambooth", _("DreamBooth")
        FULL = "full", _("Full fine-tuning")

    queue_name: ClassVar[str] = "training"
    noun: ClassVar[str] = "training_job"

    dataset = models.ForeignKey(
        Dataset, on_delete=models.SET_NULL, null=True, related_name="training_jobs"
    )
    # The names stay readable when what they name is gone.
    dataset_name = models.CharField(max_length=200)
    base_model = models.ForeignKey(
        DiffusionModel, on_delete=models.SET_NULL, null=True, related_name="training_jobs"
    )
    base_model_name = models.CharField(max_length=200)
    type = models.CharField(max_length=12, choices=Type.choices, default=Type.LORA)
    title = models.CharField(max_length=200)
    family_version = models.PositiveIntegerField(default=1)
    config = models.JSONField(default=dict)
    resolved_config = models.JSONField(default=dict)
    manifest = models.JSONField(default=dict, blank=True)
    loss = models.FloatField(null=True, blank=True)
    learning_rate = models.FloatField(null=True, blank=True)
    images_per_second = models.FloatField(null=True, blank=True)
    # Few: `[step, loss]` of the pictures that are not learned from.
    held_out_losses = models.JSONField(default=list, blank=True)
    output_model = models.OneToOneField(
        DiffusionModel,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="training_job",
    )
    resumed_from = models.ForeignKey(
        "self", on_delete=models.SET_NULL, null=True, blank=True, related_name="continuations"
    )

    def event_fields(self) -> dict[str, Any]:
        """Add the scalars a training page moves with."""
        return {
            "loss": self.loss,
            "learning_rate": self.learning_rate,
            "images_per_second": self.images_per_second,
            "output_model": self.output_model_id,
        }

    @classmethod
    def slice_seconds(cls) -> float:
        """How long a training may keep its device while somebody else's waits."""
        return 60 * float(settings.STUDIO_TRAINING_SLICE_MINUTES)

    def checkpoint_step(self) -> int:
        """Return the step from which the training would go on."""
        newest = self.checkpoints_for_resume().first()
        return newest.step if newest else 0

    def checkpoints_for_resume(self) -> QuerySet[TrainingCheckpoint]:
        """Return the resume states, newest first."""
        return self.checkpoints.exclude(prefix="").filter(is_whole=True).order_by("-step", "-id")

    def states_to_begin_from(self) -> list[TrainingCheckpoint]:
        """Return what the next run may begin from: of this training, else of the one it extends."""
        before = self.resumed_from
        inherited = before.checkpoints_for_resume()[:1] if before is not None else ()
        return [*self.checkpoints_for_resume(), *inherited]

    @property
    def checkpoint_rhythm(self) -> int:
        """How many steps lie between two checkpoints that are kept for choosing."""
        config = self.resolved_config
        return checkpoint_rhythm(
            self.total_steps,
            config.get("sample_every_steps", 0),
            config.get("checkpoint_every_steps", 0),
        )

    def is_choice(self, step: int) -> bool:
        """Whether the weights of this step are kept for choosing."""
        return step == self.total_steps or step % self.checkpoint_rhythm == 0


class TrainingCheckpoint(models.Model):
    """A step of a training to go on from, or to make a model of.

    Its files lie under `prefix` in the shared storage: all of them while it `is_whole`, the weights
    alone after that, none once `prefix` is empty. `model` is one-to-one: a checkpoint is registered
    at most once.
    """

    job = models.ForeignKey(TrainingJob, on_delete=models.CASCADE, related_name="checkpoints")
    epoch = models.PositiveIntegerField()
    step = models.PositiveIntegerField()
    prefix = models.CharField(max_length=300, blank=True)
    files = models.JSONField(default=list)
    is_whole = models.BooleanField(default=True)
    size_bytes = models.PositiveBigIntegerField(default=0)
    held_out_loss = models.FloatField(null=True)
    created_at = models.DateTimeField(default=timezone.now)
    model = models.OneToOneField(
        DiffusionModel,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="training_checkpoint",
    )

    class Meta:
        ordering = ("-step", "-id")
        constraints = [
            models.UniqueConstraint(fields=("job", "step"), name="one_checkpoint_per_step"),
        ]

    def __str__(self) -> str:
        return f"{self.job_id} @ {self.step}"

    @property
    def expires_at(self) -> datetime | None:
        """When its files go; None while the training is under way, or when they are gone."""
        if not self.prefix or self.job.finished_at is None:
            return None
        return self.job.finished_at + KEPT_AFTER_END


class TrainingMetric(models.Model):
    """What a hundred optimizer steps told: one row, because a long run has very many steps.

    `points` holds `[step, loss, learning_rate, gradient_norm]` in the order of steps; a number that
    was not finite is null.
    """

    STEPS: ClassVar[int] = 100

    job = models.ForeignKey(TrainingJob, on_delete=models.CASCADE, related_name="metrics")
    chunk = models.PositiveIntegerField()
    points = models.JSONField(default=list)

    class Meta:
        ordering = ("chunk",)
        constraints = [
            models.UniqueConstraint(fields=("job", "chunk"), name="one_row_per_chunk_of_steps"),
        ]

    def __str__(self) -> str:
        return f"{self.job_id} #{self.chunk}"

    @classmethod
    def chunk_of(cls, step: int) -> int:
        """Return the chunk that a step, counted from 1, belongs to."""
        return (step - 1) // cls.STEPS


class TrainingSample(models.Model):
    """A picture painted during training, to see where it stands."""

    job = models.ForeignKey(TrainingJob, on_delete=models.CASCADE, related_name="samples")
    step = models.PositiveIntegerField()
    index = models.PositiveIntegerField()
    prompt = models.TextField(blank=True)
    seed = models.BigIntegerField(default=0)
    key = models.CharField(max_length=300)
    thumbnail_key = models.CharField(max_length=300, blank=True)
    width = models.PositiveIntegerField()
    height = models.PositiveIntegerField()
    size_bytes = models.PositiveBigIntegerField(default=0)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ("step", "index")
        constraints = [
            models.UniqueConstraint(
                fields=("job", "step", "index"), name="one_sample_per_step_and_index"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.job_id} @ {self.step} #{self.index}"


class TrainingNote(models.Model):
    """One line of a training's timeline, kept as a code so that each reader's language is used."""

    job = models.ForeignKey(TrainingJob, on_delete=models.CASCADE, related_name="notes")
    created_at = models.DateTimeField(default=timezone.now)
    code = models.CharField(max_length=40)
    params = models.JSONField(default=dict, blank=True)

    class Meta:
        ordering = ("created_at", "id")

    def __str__(self) -> str:
        return self.code


class TrainingMeasurement(models.Model):
    """What a step of one kind of training costs on one kind of device, or the wish to know it.

    A wish has no device yet and no `measured_at`. `key` stands for the settings that decide the
    cost; nothing else of a user's configuration matters, and nothing of their pictures is here.
    """

    base_model = models.ForeignKey(DiffusionModel, on_delete=models.CASCADE, related_name="+")
    base_sha256 = models.CharField(max_length=64)
    key = models.CharField(max_length=64)
    device_name = models.CharField(max_length=200, blank=True)
    method = models.CharField(max_length=12, choices=TrainingJob.Type.choices)
    config = models.JSONField(default=dict)
    wanted_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+"
    )
    wanted_at = models.DateTimeField(default=timezone.now)
    claimed_at = models.DateTimeField(null=True, blank=True)
    measured_at = models.DateTimeField(null=True, blank=True)
    seconds_per_step = models.FloatField(null=True, blank=True)
    peak_memory_bytes = models.PositiveBigIntegerField(null=True, blank=True)
    error_code = models.CharField(max_length=40, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=("base_sha256", "key", "device_name"), name="one_measurement_per_device"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.method} on {self.device_name or 'any device'}"

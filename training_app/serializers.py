"""How trainings read and are written in the API.

Shapes only: what may be trained on what is checked in `services`.
"""

from __future__ import annotations

from typing import Any

from django.urls import reverse
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from models_app.models import DiffusionModel
from studio_project.api import StrictSerializer
from studio_project.job_serializers import FiniteField, JobProgressSerializer, JobSerializer
from training_app import estimates
from training_app.manifest import passes_range, repeats_of
from training_app.models import TrainingCheckpoint, TrainingJob, TrainingNote, TrainingSample
from training_app.texts import note_sentence
from training_app.trainer.config import TrainingConfig

LARGEST_ID = 2**63 - 1
PASSES_RANGE = "Of the picture with the fewest repeats, and of the one with the most."


class OutputModelSerializer(serializers.Serializer):
    """The model a training made."""

    id = serializers.IntegerField()
    name = serializers.CharField()
    title = serializers.CharField()


def output_model(model: DiffusionModel | None) -> dict[str, Any] | None:
    """Return how a model is named beside what made it; None when it is gone."""
    if model is None or model.deleted_at is not None:
        return None
    return {"id": model.pk, "name": model.name, "title": model.title}


class TrainingPlanSerializer(StrictSerializer):
    """What a training would be made of."""

    dataset_id = serializers.IntegerField(min_value=1, max_value=LARGEST_ID)
    base_model_id = serializers.IntegerField(min_value=1, max_value=LARGEST_ID)
    type = serializers.CharField(default="lora", help_text="lora, dreambooth or full")
    config = serializers.DictField(
        required=False,
        help_text="Any of the settings under `training` in /api/options/; the rest is resolved.",
    )


class TrainingCreateSerializer(TrainingPlanSerializer):
    """What a new training is made of."""

    title = serializers.CharField(max_length=200, required=False, allow_blank=True, default="")


class CostSerializer(serializers.Serializer):
    """What is known of the time and the memory of a training."""

    seconds = serializers.IntegerField(allow_null=True, help_text="null while it is not known.")
    seconds_per_step = FiniteField(allow_null=True)
    peak_memory_bytes = serializers.IntegerField(allow_null=True)
    fits = serializers.BooleanField(
        help_text="false if a worker tried and its device had too little memory."
    )
    known_from = serializers.CharField(
        help_text="`measured` here, `history` of an earlier training, or empty."
    )
    measuring = serializers.BooleanField(
        help_text="Whether a worker is going to measure it: ask again in a moment."
    )


class TrainingEstimateSerializer(CostSerializer):
    """How much work a training would be."""

    total_steps = serializers.IntegerField()
    num_images = serializers.IntegerField()
    passes_per_image = serializers.FloatField(help_text="Of all pictures in the mean.")
    passes_range = serializers.ListField(child=serializers.FloatField(), help_text=PASSES_RANGE)
    effective_learning_rate = serializers.FloatField(
        help_text="Learning rate times alpha / rank: what recipes compare by."
    )
    config = serializers.DictField(help_text="With every value resolved.")


class TrainingEditSerializer(StrictSerializer):
    """What may be changed about a training."""

    title = serializers.CharField(max_length=200)


class TrainingProgressSerializer(JobProgressSerializer):
    """How far a training is."""

    loss = FiniteField(allow_null=True)
    output_model = serializers.SerializerMethodField()

    @extend_schema_field(OutputModelSerializer(allow_null=True))
    def get_output_model(self, job: TrainingJob) -> dict[str, Any] | None:
        """The model that came out, once there is one."""
        return output_model(job.output_model)


class TrainingSerializer(TrainingProgressSerializer, JobSerializer):
    """A training with everything that was decided about it."""

    url = serializers.SerializerMethodField()
    dataset_id = serializers.IntegerField(allow_null=True)
    dataset_name = serializers.CharField()
    base_model_id = serializers.IntegerField(allow_null=True)
    base_model_name = serializers.CharField()
    type = serializers.CharField(help_text="lora, dreambooth or full")
    title = serializers.CharField()
    learning_rate = FiniteField(allow_null=True)
    images_per_second = FiniteField(allow_null=True)
    output_path = serializers.SerializerMethodField()
    resumed_from = serializers.UUIDField(
        source="resumed_from_id", allow_null=True, help_text="The training that this one extends."
    )
    config = serializers.DictField(source="resolved_config", help_text="With every value resolved.")

    def get_url(self, job: TrainingJob) -> str:
        """Where this training is found."""
        return reverse("training-detail", args=[job.pk])

    def get_output_path(self, job: TrainingJob) -> str | None:
        """The storage key of the weights; for staff only."""
        request = self.context.get("request")
        if job.output_model is None or request is None or not request.user.is_staff:
            return None
        return job.output_model.path


class TrainingDetailSerializer(TrainingSerializer):
    """A training with what its settings come to."""

    num_images = serializers.SerializerMethodField()
    passes_per_image = serializers.SerializerMethodField()
    passes_range = serializers.SerializerMethodField(help_text=PASSES_RANGE)
    effective_learning_rate = serializers.SerializerMethodField()
    cost = serializers.SerializerMethodField()

    def get_num_images(self, job: TrainingJob) -> int:
        """Of the frozen pictures; before the start, of those in the dataset now."""
        if job.manifest:
            return len(job.manifest["images"])
        return job.dataset.num_items if job.dataset else 0

    def get_passes_per_image(self, job: TrainingJob) -> float | None:
        """How often each picture is seen, in the mean."""
        config, number = _config_of(job), self.get_num_images(job)
        return round(config.passes_per_image(number), 1) if config and number else None

    def get_passes_range(self, job: TrainingJob) -> list[float] | None:
        """Of the picture with the fewest repeats, and of the one with the most."""
        config = _config_of(job)
        if config is None or not self.get_num_images(job):
            return None
        return passes_range(config, repeats_of(job, job.dataset))

    def get_effective_learning_rate(self, job: TrainingJob) -> float | None:
        """Learning rate times alpha / rank: what recipes compare by."""
        config = _config_of(job)
        return config.effective_learning_rate if config else None

    @extend_schema_field(CostSerializer)
    def get_cost(self, job: TrainingJob) -> dict[str, Any]:
        """What is known of its time and memory on the devices here."""
        config, base = _config_of(job), job.base_model
        cost = estimates.Cost()
        if config is not None and base is not None:
            cost = estimates.cost_of(base, config.as_dict(), job.type)
        return cost.as_dict(job.total_steps)


def _config_of(job: TrainingJob) -> TrainingConfig | None:
    """Return the resolved settings of a training that has them all."""
    return TrainingConfig.from_dict(job.resolved_config) if job.resolved_config else None


class MetricSerializer(serializers.Serializer):
    """One optimizer step."""

    step = serializers.IntegerField()
    loss = FiniteField(allow_null=True)
    learning_rate = FiniteField(allow_null=True)
    gradient_norm = FiniteField(allow_null=True)


class HeldOutLossSerializer(serializers.Serializer):
    """The loss of the pictures that are not learned from, after a step."""

    step = serializers.IntegerField()
    loss = FiniteField(allow_null=True)


class MetricsSerializer(serializers.Serializer):
    """Metrics in the order of their steps."""

    results = MetricSerializer(many=True)
    held_out = HeldOutLossSerializer(many=True, help_text="All of them, whatever `after_step`.")
    last_step = serializers.IntegerField(
        help_text="Ask again with `after_step` set to this for what came later."
    )
    epoch = serializers.IntegerField(
        help_text="Rises when the training was resumed: then fetch all metrics again."
    )


class SampleSerializer(serializers.ModelSerializer):
    """A picture painted during training."""

    url = serializers.SerializerMethodField()
    thumbnail_url = serializers.SerializerMethodField()

    class Meta:
        model = TrainingSample
        fields = (
            "id", "step", "index", "prompt", "seed", "url", "thumbnail_url", "width", "height",
            "created_at",
        )  # fmt: skip
        read_only_fields = fields

    def get_url(self, sample: TrainingSample) -> str:
        """The picture."""
        return self._reverse("training-sample-file", sample)

    def get_thumbnail_url(self, sample: TrainingSample) -> str:
        """A small version of it."""
        return self._reverse("training-sample-thumbnail", sample)

    def _reverse(self, name: str, sample: TrainingSample) -> str:
        return reverse(name, args=[sample.job_id, sample.pk])


class CheckpointSerializer(serializers.ModelSerializer):
    """A step of a training that a model can be made of."""

    samples = serializers.SerializerMethodField()
    held_out_loss = FiniteField(allow_null=True)
    expires_at = serializers.DateTimeField(
        allow_null=True, help_text="When its files go; null while the training is under way."
    )
    can_resume = serializers.BooleanField(
        source="is_whole", help_text="Whether it holds what it takes to train on from it."
    )
    available = serializers.SerializerMethodField()
    model = serializers.SerializerMethodField()

    class Meta:
        model = TrainingCheckpoint
        fields = (
            "id", "step", "size_bytes", "held_out_loss", "samples", "created_at", "expires_at",
            "available", "can_resume", "model",
        )  # fmt: skip
        read_only_fields = fields

    @extend_schema_field(SampleSerializer(many=True))
    def get_samples(self, checkpoint: TrainingCheckpoint) -> list[dict[str, Any]]:
        """The pictures that were painted at this step."""
        samples = self.context.get("samples", {}).get(checkpoint.step, [])
        return [dict(SampleSerializer(sample).data) for sample in samples]

    def get_available(self, checkpoint: TrainingCheckpoint) -> bool:
        """Whether its files are there."""
        return bool(checkpoint.prefix)

    @extend_schema_field(OutputModelSerializer(allow_null=True))
    def get_model(self, checkpoint: TrainingCheckpoint) -> dict[str, Any] | None:
        """The model that was made of it."""
        return output_model(checkpoint.model)


class CheckpointChoiceSerializer(StrictSerializer):
    """How the model of a checkpoint shall be called."""

    title = serializers.CharField(max_length=200, required=False, allow_blank=True, default="")


class TrainingExtendSerializer(StrictSerializer):
    """How much longer a training shall be."""

    additional_steps = serializers.IntegerField(min_value=1, max_value=100_000)


class NoteSerializer(serializers.ModelSerializer):
    """One line of a training's timeline."""

    message = serializers.SerializerMethodField()

    class Meta:
        model = TrainingNote
        fields = ("created_at", "code", "params", "message")
        read_only_fields = fields

    def get_message(self, note: TrainingNote) -> str:
        """The line in the reader's language."""
        return note_sentence(note.code, note.params)


class LogSerializer(serializers.Serializer):
    """The end of what a training wrote, and its timeline."""

    id = serializers.UUIDField()
    version = serializers.IntegerField()
    log_tail = serializers.CharField(allow_blank=True)
    timeline = NoteSerializer(many=True, source="notes")

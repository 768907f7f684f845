"""How requests for pictures and the pictures read in the API.

What a request may hold is checked by `engine.request`; the serializer of it here only documents.
"""

from __future__ import annotations

from typing import Any

from django.urls import reverse
from rest_framework import serializers

from generation_app.engine.request import SCHEDULERS
from generation_app.foresight import Foresight
from generation_app.models import GeneratedImage, GenerationJob
from studio_project.job_serializers import FiniteField, JobSerializer


class NamedModelSerializer(serializers.Serializer):
    """The model that was asked for; its name stays when the model goes."""

    id = serializers.IntegerField(allow_null=True)
    name = serializers.CharField()
    title = serializers.CharField()


class LoraRequestSerializer(serializers.Serializer):
    """A LoRA and how strongly it acts."""

    model = serializers.CharField(help_text="Id or name.")
    weight = serializers.FloatField(required=False, help_text="1 = as trained.")


class TextToImageRequestSerializer(serializers.Serializer):
    """A request; what is left out comes from the model. Bounds stand in /api/options/."""

    model = serializers.CharField(help_text="Id or name of a model.")
    prompt = serializers.CharField(required=False)
    negative_prompt = serializers.CharField(required=False)
    width = serializers.IntegerField(required=False)
    height = serializers.IntegerField(required=False)
    num_inference_steps = serializers.IntegerField(required=False)
    guidance_scale = serializers.FloatField(required=False)
    scheduler = serializers.CharField(required=False, help_text=", ".join(SCHEDULERS))
    seed = serializers.IntegerField(
        required=False, allow_null=True, help_text="null or -1: random, answered resolved."
    )
    num_images = serializers.IntegerField(required=False, help_text="Image i uses seed + i.")
    loras = LoraRequestSerializer(many=True, required=False)
    clip_skip = serializers.IntegerField(required=False)


class GenerationEstimateSerializer(serializers.Serializer):
    """How much work a request would be."""

    total_steps = serializers.IntegerField()
    num_images = serializers.IntegerField()
    seconds = serializers.FloatField(
        allow_null=True,
        help_text="The painting itself; null until something was painted on this site.",
    )
    load_seconds = serializers.FloatField(
        allow_null=True, help_text="On top, on a worker that does not have the model ready."
    )
    basis = serializers.CharField(
        allow_null=True,
        help_text="From what it was told: size (this base at this size), base, device (another "
        "one) or site (other bases).",
    )
    position = serializers.IntegerField(help_text="The place it would have in the queue.")
    eta_seconds = serializers.FloatField(
        allow_null=True, help_text="Until it is done, with all that comes before it."
    )


class LoraSerializer(serializers.Serializer):
    """A LoRA as it was resolved."""

    id = serializers.IntegerField()
    name = serializers.CharField()
    title = serializers.CharField()
    weight = serializers.FloatField()


class ImageLinkSerializer(serializers.ModelSerializer):
    """A picture as its job shows it."""

    url = serializers.SerializerMethodField()
    thumbnail_url = serializers.SerializerMethodField()

    class Meta:
        model = GeneratedImage
        fields: tuple[str, ...] = ("id", "index", "url", "thumbnail_url", "seed", "width", "height")
        read_only_fields = fields

    def get_url(self, image: GeneratedImage) -> str:
        """The picture."""
        return reverse("image-file", args=[image.pk])

    def get_thumbnail_url(self, image: GeneratedImage) -> str:
        """A small version of it."""
        return reverse("image-thumbnail", args=[image.pk])


class ImageSerializer(ImageLinkSerializer):
    """A picture with everything needed to paint it again."""

    model = serializers.SerializerMethodField()
    job_id = serializers.UUIDField()
    prompt = serializers.SerializerMethodField()

    class Meta(ImageLinkSerializer.Meta):
        fields = (
            *ImageLinkSerializer.Meta.fields,
            "job_id", "model", "prompt", "parameters", "size_bytes", "created_at",
        )  # fmt: skip
        read_only_fields = fields

    def get_model(self, image: GeneratedImage) -> NamedModelSerializer:
        """The model it was painted with."""
        return named_model(image.job)  # type: ignore[return-value]

    def get_prompt(self, image: GeneratedImage) -> str:
        """The words it was painted from."""
        return str(image.parameters.get("prompt", ""))


class GenerationSerializer(JobSerializer):
    """A request with every value resolved, and its pictures."""

    url = serializers.SerializerMethodField()
    mode = serializers.CharField()
    model = serializers.SerializerMethodField()
    base_model_id = serializers.IntegerField(allow_null=True)
    prompt = serializers.CharField(source="parameters.prompt")
    negative_prompt = serializers.CharField(source="parameters.negative_prompt")
    width = serializers.IntegerField(source="parameters.width")
    height = serializers.IntegerField(source="parameters.height")
    num_inference_steps = serializers.IntegerField(source="parameters.num_inference_steps")
    guidance_scale = FiniteField(source="parameters.guidance_scale")
    scheduler = serializers.CharField(source="parameters.scheduler")
    seed = serializers.IntegerField(source="parameters.seed")
    num_images = serializers.IntegerField(source="parameters.num_images")
    loras = LoraSerializer(source="parameters.loras", many=True)
    clip_skip = serializers.IntegerField(source="parameters.clip_skip")
    images = serializers.SerializerMethodField()
    preview_url = serializers.SerializerMethodField()
    eta_seconds = serializers.SerializerMethodField()

    def get_eta_seconds(self, job: GenerationJob) -> int | None:
        """In how many seconds it is done, while it waits too; null if that cannot be told."""
        context: Any = self.root.context
        foresight: Foresight = context.setdefault("foresight", Foresight(self._waiting()))
        return foresight.eta_seconds(job)

    def get_url(self, job: GenerationJob) -> str:
        """Where this job is found."""
        return reverse("generation-detail", args=[job.pk])

    def get_preview_url(self, job: GenerationJob) -> str:
        """Where the picture in the making is found while the job runs."""
        return reverse("generation-preview", args=[job.pk])

    def get_model(self, job: GenerationJob) -> NamedModelSerializer:
        """The model that was asked for."""
        return named_model(job)  # type: ignore[return-value]

    def get_images(self, job: GenerationJob) -> ImageLinkSerializer(many=True):  # type: ignore[valid-type]
        """The pictures, as they come."""
        images = sorted(
            (image for image in job.images.all() if image.deleted_at is None),
            key=lambda image: image.index,
        )
        return ImageLinkSerializer(images, many=True, context=self.context).data


def named_model(job: GenerationJob) -> dict[str, Any]:
    """Return the model a job asked for, under the name it had then."""
    return {"id": job.model_id, "name": job.model_name, "title": job.model_title}

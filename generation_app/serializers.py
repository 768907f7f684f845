"""How requests for pictures and the pictures read in the API.

What a request may hold stands in `request_serializers`.
"""

from __future__ import annotations

from typing import Any

from django.urls import reverse
from rest_framework import serializers

from generation_app.foresight import Foresight
from generation_app.models import GeneratedImage, GenerationJob, InputPicture
from generation_app.notes import notes_of
from studio_project.job_serializers import FiniteField, JobSerializer


class NamedModelSerializer(serializers.Serializer):
    """The model that was asked for; its name stays when the model goes."""

    id = serializers.IntegerField(allow_null=True)
    name = serializers.CharField()
    title = serializers.CharField()


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


class DifferenceSerializer(serializers.Serializer):
    """How far a picture is from the one it was made again from."""

    max = FiniteField(required=False, help_text="Largest difference of a value, of 255.")
    mean = FiniteField(required=False, help_text="Over all values.")
    share = FiniteField(required=False, help_text="Share of the values that differ, 0 to 1.")
    sizes = serializers.ListField(
        child=serializers.CharField(), required=False, help_text="If the sizes differ."
    )


class UploadSerializer(serializers.ModelSerializer):
    """A picture that requests may start from: `{"upload_id": id}`."""

    url = serializers.SerializerMethodField()

    class Meta:
        model = InputPicture
        fields: tuple[str, ...] = (
            "id", "url", "width", "height", "size_bytes", "format", "created_at",
        )  # fmt: skip
        read_only_fields = fields

    def get_url(self, picture: InputPicture) -> str:
        """The picture as it was kept."""
        return reverse("generate-upload-file", args=[picture.pk])


class RecalledLoraSerializer(serializers.Serializer):
    """A LoRA that was found again."""

    model = serializers.IntegerField()
    name = serializers.CharField()
    title = serializers.CharField()
    weight = serializers.FloatField()


class MissingSerializer(serializers.Serializer):
    """A model that a file names and that is not here."""

    kind = serializers.ChoiceField(choices=("model", "lora"))
    name = serializers.CharField()


class RecalledSerializer(serializers.Serializer):
    """What a file or a text says of its making, as values of a request."""

    source = serializers.ChoiceField(  # type: ignore[assignment]
        choices=("studio", "a1111", "invokeai", "comfyui")
    )
    mode = serializers.CharField(allow_null=True)
    values = serializers.DictField()
    model = NamedModelSerializer(allow_null=True)
    loras = RecalledLoraSerializer(many=True)
    missing = MissingSerializer(many=True)


class UploadedSerializer(UploadSerializer):
    """A picture that was just sent, and how it was made if the file says so."""

    recalled = RecalledSerializer(allow_null=True, read_only=True)

    class Meta(UploadSerializer.Meta):
        fields = (*UploadSerializer.Meta.fields, "recalled")  # type: ignore[assignment]
        read_only_fields = fields  # type: ignore[assignment]


class JobNoteSerializer(serializers.Serializer):
    """Something to know about how a request was painted."""

    code = serializers.CharField()
    message = serializers.CharField()


class ImageLinkSerializer(serializers.ModelSerializer):
    """A picture as its job shows it."""

    url = serializers.SerializerMethodField()
    thumbnail_url = serializers.SerializerMethodField()

    class Meta:
        model = GeneratedImage
        fields: tuple[str, ...] = (
            "id", "index", "url", "thumbnail_url", "animation_url", "media_type", "prompt", "seed",
            "width", "height", "difference",
        )  # fmt: skip
        read_only_fields = fields

    media_type = serializers.CharField(read_only=True)
    prompt = serializers.SerializerMethodField()
    animation_url = serializers.SerializerMethodField()
    difference = DifferenceSerializer(read_only=True, allow_null=True)

    def get_url(self, image: GeneratedImage) -> str:
        """The picture."""
        return reverse("image-file", args=[image.pk])

    def get_prompt(self, image: GeneratedImage) -> str:
        """The words it was painted from."""
        return str(image.parameters.get("prompt", ""))

    def get_animation_url(self, image: GeneratedImage) -> str | None:
        """A clip as a picture that moves; null for pictures."""
        return reverse("image-animation", args=[image.pk]) if image.animation_key else None

    def get_thumbnail_url(self, image: GeneratedImage) -> str:
        """A small version of it."""
        return reverse("image-thumbnail", args=[image.pk])


class ImageSerializer(ImageLinkSerializer):
    """A picture with everything needed to paint it again."""

    model = serializers.SerializerMethodField()
    job_id = serializers.UUIDField()

    class Meta(ImageLinkSerializer.Meta):
        fields = (
            *ImageLinkSerializer.Meta.fields,
            "job_id", "model", "parameters", "size_bytes", "created_at",
        )  # fmt: skip
        read_only_fields = fields

    def get_model(self, image: GeneratedImage) -> NamedModelSerializer:
        """The model it was painted with."""
        return named_model(image.job)  # type: ignore[return-value]


def _value(kind: type[serializers.Field], name: str) -> Any:
    """Make the field of a value that not every mode has: null where it has none."""
    return kind(source=f"parameters.{name}", allow_null=True, default=None)


class GenerationSerializer(JobSerializer):
    """A request with every value resolved, and its pictures; values of other modes are null."""

    url = serializers.SerializerMethodField()
    mode = serializers.CharField()
    model = serializers.SerializerMethodField()
    base_model_id = serializers.IntegerField(allow_null=True)
    image = UploadSerializer(allow_null=True)
    mask_image = UploadSerializer(allow_null=True)
    remake_of_id = serializers.IntegerField(allow_null=True)
    prompt = _value(serializers.CharField, "prompt")
    negative_prompt = _value(serializers.CharField, "negative_prompt")
    width = _value(serializers.IntegerField, "width")
    height = _value(serializers.IntegerField, "height")
    num_inference_steps = _value(serializers.IntegerField, "num_inference_steps")
    guidance_scale = _value(FiniteField, "guidance_scale")
    scheduler = _value(serializers.CharField, "scheduler")
    seed = _value(serializers.IntegerField, "seed")
    num_images = _value(serializers.IntegerField, "num_images")
    loras = LoraSerializer(source="parameters.loras", many=True)
    clip_skip = _value(serializers.IntegerField, "clip_skip")
    output_format = _value(serializers.CharField, "output_format")
    strength = _value(FiniteField, "strength")
    mask_blur = _value(serializers.IntegerField, "mask_blur")
    hires_scale = _value(FiniteField, "hires_scale")
    hires_strength = _value(FiniteField, "hires_strength")
    hires_steps = _value(serializers.IntegerField, "hires_steps")
    hires_upscaler = _value(serializers.CharField, "hires_upscaler")
    num_frames = _value(serializers.IntegerField, "num_frames")
    fps = _value(serializers.IntegerField, "fps")
    motion_bucket_id = _value(serializers.IntegerField, "motion_bucket_id")
    noise_aug_strength = _value(FiniteField, "noise_aug_strength")
    decode_chunk_size = _value(serializers.IntegerField, "decode_chunk_size")
    min_guidance_scale = _value(FiniteField, "min_guidance_scale")
    max_guidance_scale = _value(FiniteField, "max_guidance_scale")
    run_alone = serializers.BooleanField(source="parameters.run_alone", default=False)
    images = serializers.SerializerMethodField()
    preview_url = serializers.SerializerMethodField()
    notes = serializers.SerializerMethodField()

    def get_notes(self, job: GenerationJob) -> JobNoteSerializer(many=True):  # type: ignore[valid-type]
        """What to know about how it was painted, in the reader's language."""
        return notes_of(job)

    def get_eta_seconds(self, job: GenerationJob) -> int | None:  # type: ignore[override]
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

"""How a model reads in the API, and what of it can be changed."""

from __future__ import annotations

from django.urls import reverse
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from models_app.models import DiffusionModel
from studio_project.api import StrictSerializer
from studio_project.models import Visibility


class DiffusionModelSerializer(serializers.ModelSerializer):
    """A model as everyone who may see it reads it."""

    title = serializers.CharField(source="shown_title", read_only=True)
    description = serializers.CharField(source="shown_description", read_only=True)
    path = serializers.SerializerMethodField(help_text="Storage key; for staff only, else null.")
    owner = serializers.CharField(
        source="owner.username", read_only=True, allow_null=True, default=None
    )
    base_model = serializers.IntegerField(
        source="base_model_id", read_only=True, allow_null=True, help_text="Id of the base model."
    )
    base_model_title = serializers.CharField(
        source="base_model.shown_title", read_only=True, allow_null=True, default=None
    )
    trigger_words = serializers.ListField(child=serializers.CharField(), read_only=True)
    default_settings = serializers.DictField(read_only=True)
    thumbnail_url = serializers.SerializerMethodField()
    availability_detail = serializers.CharField(
        read_only=True, help_text="Why it cannot be used and how to change that; empty if it can."
    )

    usable = serializers.BooleanField(
        read_only=True, help_text="Ready, active and with a usable base."
    )

    is_adapter = serializers.BooleanField(
        read_only=True,
        help_text="Whether it is used on top of a base model: a LoRA, or DreamBooth kept as one.",
    )

    is_inpainting = serializers.BooleanField(
        read_only=True,
        help_text="Whether it paints parts of pictures only, with a picture and a mask.",
    )

    class Meta:
        model = DiffusionModel
        fields = (
            "id",
            "name",
            "title",
            "type",
            "is_adapter",
            "is_inpainting",
            "category",
            "architecture",
            "path",
            "is_active",
            "availability",
            "availability_detail",
            "usable",
            "base_model",
            "base_model_title",
            "owner",
            "visibility",
            "trigger_words",
            "description",
            "thumbnail_url",
            "default_settings",
            "size_bytes",
            "sha256",
            "source",
            "licence",
            "version",
            "created_at",
        )
        read_only_fields = fields

    @extend_schema_field(serializers.CharField(allow_null=True))
    def get_path(self, model: DiffusionModel) -> str | None:
        """Return the storage key to staff."""
        request = self.context.get("request")
        return model.path if request is not None and request.user.is_staff else None

    @extend_schema_field(serializers.CharField(allow_null=True))
    def get_thumbnail_url(self, model: DiffusionModel) -> str | None:
        """Return where the picture is; the address changes with the picture."""
        return thumbnail_url(model)


def thumbnail_url(model: DiffusionModel) -> str | None:
    """Return the address of a model's picture, None without one."""
    if not model.thumbnail_key:
        return None
    url = reverse("model-thumbnail", kwargs={"pk": model.pk})
    return f"{url}?v={model.thumbnail_key.rpartition('/')[2][:8]}"


class ModelChangesSerializer(StrictSerializer):
    """What a `PATCH` may hold; the services check the values."""

    title = serializers.CharField(required=False, max_length=200)
    description = serializers.CharField(required=False, allow_blank=True, max_length=4000)
    visibility = serializers.ChoiceField(required=False, choices=Visibility.choices)
    trigger_words = serializers.ListField(
        required=False, child=serializers.CharField(allow_blank=True, max_length=100)
    )
    default_settings = serializers.DictField(required=False)
    is_active = serializers.BooleanField(required=False, help_text="Staff only.")


class ThumbnailUploadSerializer(StrictSerializer):
    """A picture for a model."""

    file = serializers.FileField(help_text="JPEG, PNG or WebP, at most 20 MB.")

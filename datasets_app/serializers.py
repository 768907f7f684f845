"""How datasets and pictures read in the API, and what of them can be changed."""

from __future__ import annotations

from django.urls import reverse
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from datasets_app.models import Dataset, DatasetImage
from studio_project.api import StrictSerializer
from studio_project.models import Visibility


class DatasetSerializer(serializers.ModelSerializer):
    """A dataset as everyone who may see it reads it."""

    path = serializers.CharField(read_only=True, help_text="Folder of its files in the storage.")
    owner = serializers.CharField(source="owner.username", read_only=True)
    cover_url = serializers.SerializerMethodField(help_text="Thumbnail of the first picture.")

    class Meta:
        model = Dataset
        fields = (
            "id",
            "name",
            "type",
            "path",
            "num_items",
            "created_at",
            "owner",
            "visibility",
            "version",
            "size_bytes",
            "cover_url",
        )
        read_only_fields = fields

    @extend_schema_field(serializers.CharField(allow_null=True))
    def get_cover_url(self, dataset: Dataset) -> str | None:
        """Return where the cover is, None while the dataset is empty."""
        if dataset.cover_image_id is None:
            return None
        return reverse("dataset-image-thumbnail", args=(dataset.pk, dataset.cover_image_id))


class NewDatasetSerializer(StrictSerializer):
    """What makes a dataset."""

    name = serializers.CharField(max_length=Dataset.NAME_LENGTH)
    type = serializers.ChoiceField(choices=Dataset.Type.choices, default=Dataset.Type.IMAGE)
    visibility = serializers.ChoiceField(
        choices=Visibility.choices, default=Visibility.PRIVATE, initial=Visibility.PRIVATE
    )


class DatasetChangesSerializer(StrictSerializer):
    """What of a dataset can be changed."""

    name = serializers.CharField(required=False, max_length=Dataset.NAME_LENGTH)
    visibility = serializers.ChoiceField(required=False, choices=Visibility.choices)


class DatasetImageSerializer(serializers.ModelSerializer):
    """A picture of a dataset."""

    dataset_id = serializers.IntegerField(read_only=True)
    name = serializers.CharField(source="original_name", read_only=True)
    url = serializers.SerializerMethodField()
    thumbnail_url = serializers.SerializerMethodField()

    class Meta:
        model = DatasetImage
        fields = (
            "id",
            "dataset_id",
            "name",
            "caption",
            "repeats",
            "width",
            "height",
            "format",
            "size_bytes",
            "pixel_sha256",
            "url",
            "thumbnail_url",
            "created_at",
            "version",
        )
        read_only_fields = fields

    @extend_schema_field(serializers.CharField())
    def get_url(self, image: DatasetImage) -> str:
        """Return where the kept file is."""
        return reverse("dataset-image-file", args=(image.dataset_id, image.pk))

    @extend_schema_field(serializers.CharField())
    def get_thumbnail_url(self, image: DatasetImage) -> str:
        """Return where the small picture is."""
        return reverse("dataset-image-thumbnail", args=(image.dataset_id, image.pk))


class DatasetImageChangesSerializer(StrictSerializer):
    """What of a picture can be changed; an empty caption takes it away."""

    caption = serializers.CharField(
        required=False,
        allow_blank=True,
        trim_whitespace=False,
        help_text="At most 2,000 characters, on one line.",
    )
    repeats = serializers.IntegerField(
        required=False,
        min_value=1,
        max_value=DatasetImage.MAX_REPEATS,
        help_text="How often trainings show it where they show other pictures once.",
    )


class ImagesRepeatedSerializer(StrictSerializer):
    """Pictures of a dataset that get the same repeats."""

    images = serializers.ListField(
        child=serializers.IntegerField(min_value=1), min_length=1, max_length=10_000
    )
    repeats = serializers.IntegerField(min_value=1, max_value=DatasetImage.MAX_REPEATS)


class ImagesChangedSerializer(serializers.Serializer):
    """What came of a change to several pictures."""

    changed = serializers.IntegerField(help_text="How many of them there were.")


class UploadSerializer(StrictSerializer):
    """Files for a dataset."""

    files = serializers.ListField(
        child=serializers.FileField(),
        help_text=(
            "JPEG, PNG or WebP pictures, .txt captions beside them, metadata.jsonl, or zips of "
            "these; at most 200 files and 64 MB a request."
        ),
    )


class RejectionSerializer(serializers.Serializer):
    """A file that was not taken."""

    name = serializers.CharField()
    code = serializers.CharField(help_text="Stable; for programs.")
    detail = serializers.CharField(help_text="For people; names the way out.")


class UploadResultSerializer(serializers.Serializer):
    """What became of the files of a request."""

    created = DatasetImageSerializer(many=True)
    updated = DatasetImageSerializer(
        many=True, help_text="Pictures that were there already and got a caption."
    )
    rejected = RejectionSerializer(many=True)

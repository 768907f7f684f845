"""Datasets and the pictures in them.

Rows hold state and nothing else: who may change what, and the counts that are kept beside it, are
the business of ``services``. A deleted dataset or picture keeps its row, marked, until no training
needs its file any more (``removal``).
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import PurePath
from typing import Any, Self

from django.contrib.auth.models import AnonymousUser
from django.db import models
from django.db.models import OuterRef, Q, Subquery
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.translation import gettext_lazy as _

from datasets_app.captions import MAX_CAPTION, MAX_REPEATS
from datasets_app.names import MAX_FILE_NAME
from studio_project import events
from studio_project.models import OwnedQuerySet, User, Visibility


class DatasetQuerySet(OwnedQuerySet):
    """Datasets by who may see and change them."""

    def live(self) -> Self:
        """Keep what was not deleted."""
        return self.filter(deleted_at=None)

    def visible_to(self, user: User | AnonymousUser) -> Self:
        """Keep what this user may see and train on: their own and what is shared."""
        return super().visible_to(user).live()

    def editable_by(self, user: User | AnonymousUser) -> Self:
        """Keep what this user may change."""
        return super().editable_by(user).live()

    def with_cover(self) -> Self:
        """Bring the first picture of each dataset along, so that a list needs one query."""
        images = DatasetImage.objects.live().filter(dataset=OuterRef("pk")).order_by("pk")
        return self.annotate(
            cover_image_id=Subquery(images.values("pk")[:1]),
            cover_key=Subquery(images.values("thumbnail_key")[:1]),
        )


class Dataset(models.Model):
    """A named collection of pictures that somebody trains on."""

    NAME_LENGTH = 200

    class Type(models.TextChoices):
        """What a dataset holds."""

        IMAGE = "image", _("Pictures")

    owner = models.ForeignKey(
        User, on_delete=models.PROTECT, related_name="datasets", verbose_name=_("owner")
    )
    name = models.CharField(_("name"), max_length=NAME_LENGTH)
    type = models.CharField(_("type"), max_length=10, choices=Type.choices, default=Type.IMAGE)
    visibility = models.CharField(
        _("visibility"), max_length=10, choices=Visibility.choices, default=Visibility.PRIVATE
    )
    # Kept, not computed: they change with F() in the transaction that makes or deletes a picture.
    num_items = models.PositiveIntegerField(_("pictures"), default=0)
    size_bytes = models.PositiveBigIntegerField(_("size in bytes"), default=0)
    version = models.PositiveIntegerField(default=1)
    created_at = models.DateTimeField(_("created"), default=timezone.now)
    deleted_at = models.DateTimeField(null=True, blank=True)

    objects = DatasetQuerySet.as_manager()

    class Meta:
        verbose_name = _("dataset")
        verbose_name_plural = _("datasets")
        permissions = [("view_private_dataset", "Can open private datasets of other people")]
        ordering = ("-created_at", "-id")
        indexes = [
            models.Index(fields=("owner", "-created_at", "-id"), name="dataset_owner_created"),
            models.Index(
                fields=("visibility", "-created_at", "-id"), name="dataset_shared_created"
            ),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def path(self) -> str:
        """The folder of its files in the storage."""
        return f"datasets/{self.pk}"

    @cached_property
    def cover_image_id(self) -> int | None:
        """The picture that stands for the dataset: its first, None while it is empty."""
        cover = self._cover()
        return cover.pk if cover else None

    @cached_property
    def cover_key(self) -> str | None:
        """The key of the cover's thumbnail, None while the dataset is empty."""
        cover = self._cover()
        return cover.thumbnail_key if cover else None

    def as_event(self, what: str) -> dict[str, Any]:
        """Return the event that tells how the dataset is now; never its contents."""
        return {
            "type": f"dataset.{what}",
            "id": self.pk,
            "version": self.version,
            "ts": timezone.now().isoformat(),
            "visibility": self.visibility,
            "num_items": self.num_items,
            "size_bytes": self.size_bytes,
        }

    def publish(self) -> None:
        """Tell everyone who may see the dataset how it is now, on commit."""
        events.publish(self.as_event("changed"), **self._audience())

    def publish_gone(self, what: str, *, version: int) -> None:
        """Tell everyone who may see the dataset that from this version on they cannot."""
        events.gone(self.as_event(what) | {"version": version}, **self._audience())

    def _audience(self) -> dict[str, Any]:
        if self.visibility == Visibility.SHARED:
            return {"shared": True}
        return {"users": [self.owner_id]}

    def _cover(self) -> DatasetImage | None:
        return DatasetImage.objects.live().filter(dataset=self).order_by("pk").first()


class DatasetImageQuerySet(models.QuerySet["DatasetImage"]):
    """Pictures by who may see and change them."""

    def live(self) -> Self:
        """Keep what was not deleted."""
        return self.filter(deleted_at=None)

    def visible_to(self, user: User | AnonymousUser) -> Self:
        """Keep the living pictures of the datasets this user may see."""
        return self.live().filter(dataset__in=Dataset.objects.visible_to(user))

    def editable_by(self, user: User | AnonymousUser) -> Self:
        """Keep the living pictures of the datasets this user may change."""
        return self.live().filter(dataset__in=Dataset.objects.editable_by(user))

    def needed_keys(self, keys: Collection[str]) -> set[str]:
        """Return those of the given storage keys that a row names."""
        rows = self.filter(Q(key__in=keys) | Q(thumbnail_key__in=keys))
        named = rows.values_list("key", "thumbnail_key")
        return {key for pair in named for key in pair}.intersection(keys)


class DatasetImage(models.Model):
    """One picture of a dataset; its file never changes, its caption and its repeats may.

    A training shows a picture `repeats` times where it shows others once.
    """

    CAPTION_LENGTH = MAX_CAPTION
    MAX_REPEATS = MAX_REPEATS
    NAME_LENGTH = MAX_FILE_NAME
    SHOWN_NAME_LENGTH = 60

    class Format(models.TextChoices):
        """How the file is kept."""

        JPEG = "jpeg", "JPEG"
        PNG = "png", "PNG"
        WEBP = "webp", "WebP"

    dataset = models.ForeignKey(Dataset, on_delete=models.PROTECT, related_name="images")
    key = models.CharField(max_length=200, unique=True)
    thumbnail_key = models.CharField(max_length=200, unique=True)
    original_name = models.CharField(_("name"), max_length=NAME_LENGTH)
    caption = models.CharField(_("caption"), max_length=CAPTION_LENGTH, blank=True, default="")
    repeats = models.PositiveSmallIntegerField(_("repeats"), default=1)
    width = models.PositiveIntegerField(_("width"))
    height = models.PositiveIntegerField(_("height"))
    size_bytes = models.PositiveBigIntegerField(_("size in bytes"))
    format = models.CharField(_("format"), max_length=10, choices=Format.choices)
    pixel_sha256 = models.CharField(max_length=64)
    version = models.PositiveIntegerField(default=1)
    created_at = models.DateTimeField(_("created"), default=timezone.now)
    deleted_at = models.DateTimeField(null=True, blank=True)

    objects = DatasetImageQuerySet.as_manager()

    class Meta:
        verbose_name = _("picture")
        verbose_name_plural = _("pictures")
        ordering = ("-created_at", "-id")
        constraints = [
            # The referee when two uploads of the same picture arrive at once.
            models.UniqueConstraint(
                fields=("dataset", "pixel_sha256"),
                condition=Q(deleted_at=None),
                name="one_picture_per_dataset",
            ),
        ]
        indexes = [
            models.Index(fields=("dataset", "-created_at", "-id"), name="dataset_image_created"),
            models.Index(
                fields=("deleted_at",),
                condition=Q(deleted_at__isnull=False),
                name="dataset_image_deleted",
            ),
        ]

    def __str__(self) -> str:
        return self.original_name

    @property
    def content_type(self) -> str:
        """The media type of the kept file, from our own record."""
        return f"image/{self.format}"

    @property
    def shown_name(self) -> str:
        """The name, cut in the middle when it is too long to show."""
        name, limit = self.original_name, self.SHOWN_NAME_LENGTH
        return name if len(name) <= limit else f"{name[: limit - 13]}…{name[-12:]}"

    @property
    def download_name(self) -> str:
        """The name to save the kept file as; its ending follows how it is kept."""
        suffix = ".jpg" if self.format == self.Format.JPEG else f".{self.format}"
        return f"{PurePath(self.original_name).stem[:100] or 'picture'}{suffix}"

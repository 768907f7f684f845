"""Base models and the models that were trained from them.

A row is published by existing: its files lie in the storage before it is made. Rows are never
removed, only marked, so that pictures and jobs keep the name of what made them. Who may change
what is decided in ``services``; which jobs made a model is known to the jobs alone.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.utils import timezone
from django.utils.translation import gettext, pgettext_lazy
from django.utils.translation import gettext_lazy as _

from models_app.layouts import SUFFIX, file_keys
from models_app.querysets import DiffusionModelQuerySet
from studio_project import events, storage
from studio_project.models import Visibility


def trained_model_name(job_id: UUID | str, finished_at: datetime | None = None) -> str:
    """Return the fixed name of a trained model, ``Trained-20260131-235959-1a2b3c4d``."""
    moment = finished_at or timezone.now()
    return f"Trained-{moment:%Y%m%d-%H%M%S}-{str(job_id).replace('-', '')[:8]}"


def _one_of(field: str, *values: str) -> models.CheckConstraint:
    """Keep a column to its choices, whoever writes it."""
    return models.CheckConstraint(
        condition=Q(**{f"{field}__in": list(values)}), name=f"model_{field}_known"
    )


class DiffusionModel(models.Model):
    """A pipeline that makes pictures, or an adapter that changes one."""

    class Type(models.TextChoices):
        """What the row is."""

        BASE = "base_model", _("Base model")
        LORA = "lora", "LoRA"
        DREAMBOOTH = "dreambooth", "DreamBooth"
        FULL = "full", _("Full training")

    class Category(models.TextChoices):
        """What it makes."""

        IMAGE = "image", _("Image")
        VIDEO = "video", pgettext_lazy("category of a model", "Video")

    class Architecture(models.TextChoices):
        """The family whose rules it follows."""

        SD1 = "sd1", "Stable Diffusion 1"
        SD2 = "sd2", "Stable Diffusion 2"
        SDXL = "sdxl", "Stable Diffusion XL"
        SVD = "svd", "Stable Video Diffusion"

    class Availability(models.TextChoices):
        """Whether its files are here."""

        READY = "ready", _("Ready")
        REMOTE = "remote", _("Not downloaded")
        DOWNLOADING = "downloading", _("Downloading")
        FAILED = "failed", _("Download failed")

    class Failure(models.TextChoices):
        """Why the last download failed; the sentence is for whoever looks at the model."""

        UNREACHABLE = "hub_unreachable", _("The model hub could not be reached.")
        LICENCE = (
            "licence_required",
            _("The model hub wants its licence accepted first, and a token (STUDIO_HUB_TOKEN)."),
        )
        NOT_FOUND = "hub_not_found", _("The model hub does not have this version of the model.")
        REFUSED = "hub_refused", _("The model hub refused the download.")
        DAMAGED = "download_damaged", _("What arrived is not what the model hub announced.")
        INVALID = "files_invalid", _("The downloaded files cannot be used.")
        DISK_FULL = "disk_full", _("The disk is full.")
        INTERRUPTED = "interrupted", _("The download was interrupted.")

    name = models.CharField(_("name"), max_length=200)
    title = models.CharField(_("title"), max_length=200)
    type = models.CharField(_("type"), max_length=12, choices=Type.choices)
    category = models.CharField(
        _("category"), max_length=8, choices=Category.choices, default=Category.IMAGE
    )
    architecture = models.CharField(_("architecture"), max_length=8, choices=Architecture.choices)
    # Read from the UNet: it paints parts of pictures and nothing else.
    is_inpainting = models.BooleanField(_("for inpainting"), default=False, editable=False)
    # A file's key for an adapter, the prefix of a diffusers folder for a pipeline, "" while remote.
    path = models.CharField(_("path"), max_length=300, blank=True, editable=False)
    files = models.JSONField(default=list, blank=True, editable=False)
    is_active = models.BooleanField(_("active"), default=True)
    availability = models.CharField(
        _("availability"),
        max_length=12,
        choices=Availability.choices,
        default=Availability.READY,
        editable=False,
    )
    failure = models.CharField(
        max_length=20, choices=Failure.choices, blank=True, default="", editable=False
    )
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="diffusion_models",
        verbose_name=_("owner"),
    )
    visibility = models.CharField(
        _("visibility"), max_length=8, choices=Visibility.choices, default=Visibility.PRIVATE
    )
    base_model = models.ForeignKey(
        "self",
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="adapters",
        verbose_name=_("base model"),
    )
    trigger_words = models.JSONField(_("trigger words"), default=list, blank=True)
    description = models.TextField(_("description"), blank=True)
    thumbnail_key = models.CharField(max_length=300, blank=True, editable=False)
    default_settings = models.JSONField(_("default settings"), default=dict, blank=True)
    size_bytes = models.PositiveBigIntegerField(_("size in bytes"), default=0, editable=False)
    sha256 = models.CharField(max_length=64, blank=True, editable=False)
    source = models.CharField(_("source"), max_length=300, blank=True)
    revision = models.CharField(_("revision"), max_length=100, blank=True)
    licence = models.CharField(_("licence"), max_length=100, blank=True)
    source_dataset_name = models.CharField(max_length=200, blank=True, editable=False)
    created_at = models.DateTimeField(_("created"), default=timezone.now, editable=False)
    version = models.PositiveIntegerField(default=1, editable=False)
    deleted_at = models.DateTimeField(null=True, blank=True, editable=False)

    objects = DiffusionModelQuerySet.as_manager()

    class Meta:
        verbose_name = _("diffusion model")
        verbose_name_plural = _("diffusion models")
        ordering = ("-created_at", "-id")
        permissions = [("view_private_diffusionmodel", "Can open private models of other people")]
        indexes = [
            models.Index(fields=("-created_at", "-id"), name="model_by_age"),
            models.Index(fields=("owner", "visibility"), name="model_by_owner"),
            models.Index(fields=("name",), name="model_by_name"),
        ]
        constraints = [
            _one_of("type", "base_model", "lora", "dreambooth", "full"),
            _one_of("category", "image", "video"),
            _one_of("architecture", "sd1", "sd2", "sdxl", "svd"),
            _one_of("availability", "ready", "remote", "downloading", "failed"),
            _one_of("visibility", "private", "shared"),
            models.CheckConstraint(
                condition=~Q(availability="ready") | ~Q(path=""), name="ready_model_has_files"
            ),
            models.CheckConstraint(
                condition=Q(owner__isnull=False) | Q(visibility="shared"),
                name="site_model_is_shared",
            ),
            models.CheckConstraint(
                condition=~Q(type="lora") | Q(base_model__isnull=False), name="lora_has_base"
            ),
            models.UniqueConstraint(
                fields=("name",),
                condition=Q(owner__isnull=True, deleted_at__isnull=True),
                name="site_model_name_once",
            ),
        ]

    def __str__(self) -> str:
        return self.title or self.name

    @property
    def is_file(self) -> bool:
        """True for an adapter in one file, False for a pipeline in a folder."""
        return self.path.endswith(SUFFIX)

    @property
    def is_adapter(self) -> bool:
        """True for what changes a base model, False for what paints by itself."""
        return self.type == self.Type.LORA or (self.type == self.Type.DREAMBOOTH and self.is_file)

    @property
    def is_ready(self) -> bool:
        """True when the files are here and nobody switched the model off."""
        return self.is_active and self.availability == self.Availability.READY

    @property
    def usable(self) -> bool:
        """True when everyone who may see the model can generate with it right now."""
        base = self.base_model
        if base is None or not self.is_adapter:
            return self.is_ready
        reachable = base.visibility == Visibility.SHARED or base.owner_id == self.owner_id
        return self.is_ready and base.is_ready and base.deleted_at is None and reachable

    @property
    def shown_title(self) -> str:
        """The title, in the reader's language for what the site brings itself."""
        return gettext(self.title) if self.owner_id is None and self.title else self.title

    @property
    def shown_description(self) -> str:
        """The description, in the reader's language for what the site brings itself."""
        words = self.description
        return gettext(words) if self.owner_id is None and words else words

    @property
    def fetch_command(self) -> str:
        """What an administrator types to bring the files."""
        return f"python manage.py fetch_model {self.name}"

    @property
    def availability_detail(self) -> str:
        """Why the model cannot be used and how to change that; empty when it can."""
        if self.availability == self.Availability.REMOTE:
            return gettext("Not downloaded yet. An administrator brings it with: %(command)s") % {
                "command": self.fetch_command
            }
        if self.availability == self.Availability.DOWNLOADING:
            return gettext(
                "Being downloaded. If that stopped, an administrator continues it with: %(command)s"
            ) % {"command": self.fetch_command}
        if self.availability == self.Availability.FAILED:
            return gettext("%(reason)s An administrator tries again with: %(command)s") % {
                "reason": self.Failure(self.failure).label if self.failure else "",
                "command": self.fetch_command,
            }
        if not self.is_active:
            return gettext("An administrator has deactivated this model.")
        base = self.base_model
        if self.is_adapter and base and not (base.is_ready and base.deleted_at is None):
            return gettext("Its base model, %(base)s, cannot be used at the moment.") % {
                "base": base.shown_title
            }
        return ""

    def weights_file(self) -> Path:
        """Return a local path of an adapter's file (a worker asks this).

        Raises:
            FileNotFoundError: The model is a folder, or not here.
        """
        if not self.is_file:
            raise FileNotFoundError(f"{self.name} is not one file")
        return storage.local_copy(self.path)

    def weights_folder(self) -> Path:
        """Return the local folder of a pipeline, or the local file of an adapter.

        Raises:
            FileNotFoundError: The files are not here.
        """
        if self.is_file:
            return self.weights_file()
        return storage.local_folder(self.path, [entry["name"] for entry in self.files])

    def storage_keys(self) -> list[str]:
        """Return the keys of everything this row needs in the storage."""
        keys = file_keys(self.path, self.files)
        return [key for key in (*keys, self.thumbnail_key) if key]

    def write(self, *, raise_version_by: int = 1, **fields: Any) -> None:
        """Change columns and raise the version in one UPDATE, then refresh this object.

        Raises:
            DiffusionModel.DoesNotExist: Somebody deleted the model meanwhile.
        """
        changed = DiffusionModel.objects.filter(pk=self.pk, deleted_at=None).update(
            version=F("version") + raise_version_by, **fields
        )
        if not changed:
            raise DiffusionModel.DoesNotExist(f"model {self.pk} was deleted")
        self.refresh_from_db()

    def as_event(self, what: str) -> dict[str, Any]:
        """Return the event that tells of the model as it is now.

        Args:
            what: ``registered | changed | deleted``.
        """
        identity = {
            "type": f"diffusion_model.{what}",
            "id": self.pk,
            "version": self.version,
            "ts": timezone.now().isoformat(),
        }
        return identity | {
            "name": self.name,
            "title": self.shown_title,
            "model_type": self.type,
            "category": self.category,
            "architecture": self.architecture,
            "base_model": self.base_model_id,
            "visibility": self.visibility,
            "is_active": self.is_active,
            "availability": self.availability,
            "usable": self.usable,
        }

    def publish(self, what: str) -> None:
        """Tell everyone who may see the model how it is now, on commit."""
        events.publish(self.as_event(what), **self._audience())

    def publish_gone(self, what: str, *, version: int) -> None:
        """Tell everyone who may see the model that from this version on they cannot."""
        events.gone(self.as_event(what) | {"version": version}, **self._audience())

    def _audience(self) -> dict[str, Any]:
        if self.visibility == Visibility.SHARED:
            return {"shared": True}
        return {"users": [] if self.owner_id is None else [self.owner_id]}

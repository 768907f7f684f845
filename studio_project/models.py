"""People, their tokens and the machines that work for them.

Nothing here cascades from a user to their work: every foreign key to a user is PROTECT, and an
account is deactivated rather than deleted.
"""

from __future__ import annotations

import hashlib
import secrets
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING, Self

from django.conf import settings
from django.contrib.auth.models import AbstractUser, AnonymousUser
from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from studio_project.device_share import devices_of

if TYPE_CHECKING:
    from datetime import datetime

GIBIBYTE = 1024**3


class User(AbstractUser):
    """An account, with its preferences and its caps."""

    class Theme(models.TextChoices):
        """What the pages' colours follow."""

        SYSTEM = "system", _("System")
        LIGHT = "light", _("Light")
        DARK = "dark", _("Dark")

    language = models.CharField(
        _("language"), max_length=2, blank=True, default="", choices=settings.LANGUAGES
    )
    theme = models.CharField(_("theme"), max_length=6, choices=Theme.choices, default=Theme.SYSTEM)
    max_active_jobs = models.PositiveIntegerField(_("active jobs at most"), default=50)
    max_stored_bytes = models.PositiveBigIntegerField(
        _("stored bytes at most"), default=20 * GIBIBYTE
    )
    max_images_per_request = models.PositiveIntegerField(
        _("images per request at most"), default=16
    )
    stored_bytes = models.PositiveBigIntegerField(_("stored bytes"), default=0, editable=False)
    # Part of every session's and socket's proof: raising it ends them all at once.
    session_epoch = models.PositiveIntegerField(default=0, editable=False)

    def get_session_auth_hash(self) -> str:
        """Bind sessions to the epoch as well as to the password."""
        password_hash = super().get_session_auth_hash()
        return hashlib.sha256(f"{password_hash}:{self.session_epoch}".encode()).hexdigest()


class Visibility(models.TextChoices):
    """Who sees a dataset or a model besides its owner."""

    PRIVATE = "private", _("Private")
    SHARED = "shared", _("Shared")


class OwnedQuerySet(models.QuerySet):
    """Rows with an `owner` (null: the site's own) and a `visibility`."""

    def visible_to(self, user: User | AnonymousUser) -> Self:
        """Keep what this user may see and use: their own and what is shared."""
        if not user.is_authenticated:
            return self.none()
        return self.filter(Q(owner=user) | Q(visibility=Visibility.SHARED))

    def editable_by(self, user: User | AnonymousUser) -> Self:
        """Keep what this user may change: their own, and for staff also what is shared."""
        if not user.is_authenticated:
            return self.none()
        mine = Q(owner=user)
        return self.filter(mine | Q(visibility=Visibility.SHARED) if user.is_staff else mine)


def token_digest(token: str) -> str:
    """Return the hash a secret is stored as; the secrets are random, so one round is enough."""
    return hashlib.sha256(token.encode()).hexdigest()


class ApiToken(models.Model):
    """A named, expiring, revocable secret for scripts; only its hash is kept."""

    PREFIX = "studio_"

    owner = models.ForeignKey(User, on_delete=models.PROTECT, related_name="api_tokens")
    name = models.CharField(max_length=100)
    digest = models.CharField(max_length=64, unique=True)
    created_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField()
    last_used_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ("-created_at", "-id")

    def __str__(self) -> str:
        return self.name

    @classmethod
    def issue(cls, owner: User, name: str) -> tuple[ApiToken, str]:
        """Make a token; the secret is returned once and cannot be read again."""
        secret = cls.PREFIX + secrets.token_urlsafe(32)
        expires_at = timezone.now() + timedelta(days=settings.STUDIO_TOKEN_DAYS)
        row = cls.objects.create(
            owner=owner, name=name, digest=token_digest(secret), expires_at=expires_at
        )
        return row, secret

    @classmethod
    def find(cls, secret: str) -> ApiToken | None:
        """Return the living token of an active user for this secret, else None."""
        return (
            cls.objects.select_related("owner")
            .filter(
                digest=token_digest(secret),
                revoked_at=None,
                expires_at__gt=timezone.now(),
                owner__is_active=True,
            )
            .first()
        )


class Invitation(models.Model):
    """One person's leave to sign up, sent as a link and good for one account."""

    email = models.EmailField()
    digest = models.CharField(max_length=64, unique=True)
    created_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField()
    accepted_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return self.email

    @classmethod
    def issue(cls, email: str, *, days: int = 14) -> tuple[Invitation, str]:
        """Make an invitation; the secret for its link is returned once."""
        secret = secrets.token_urlsafe(32)
        expires_at = timezone.now() + timedelta(days=days)
        row = cls.objects.create(email=email, digest=token_digest(secret), expires_at=expires_at)
        return row, secret

    @classmethod
    def open_for(cls, secret: str) -> Invitation | None:
        """Return the unused, unexpired invitation this secret belongs to."""
        return cls.objects.filter(
            digest=token_digest(secret), accepted_at=None, expires_at__gt=timezone.now()
        ).first()


class Worker(models.Model):
    """One worker process: the owner of a device or a group of them, seen by its heartbeat.

    ``memory_bytes`` is that of each device; of a group's, that of the smallest. ``pid`` means
    something only to processes of the same ``machine``, which a host's name does not tell.
    """

    class State(models.TextChoices):
        """What the worker is doing, as it last said itself."""

        STARTING = "starting", _("Starting")
        IDLE = "idle", _("Idle")
        BUSY = "busy", _("Busy")
        REFUSING = "refusing", _("Not taking work")
        STOPPED = "stopped", _("Stopped")

    name = models.CharField(max_length=200, unique=True)
    host = models.CharField(max_length=200)
    machine = models.CharField(max_length=64, blank=True, default="")
    pid = models.PositiveIntegerField()
    device = models.CharField(max_length=200)
    device_name = models.CharField(max_length=200, blank=True)
    memory_bytes = models.PositiveBigIntegerField(default=0)
    queues = models.JSONField(default=list)
    code_version = models.CharField(max_length=64)
    started_at = models.DateTimeField(default=timezone.now)
    last_seen_at = models.DateTimeField(default=timezone.now, db_index=True)
    state = models.CharField(max_length=10, choices=State.choices, default=State.STARTING)
    refusal = models.CharField(max_length=40, blank=True)
    warm = models.JSONField(default=list, blank=True)
    crash_streak = models.PositiveIntegerField(default=0)
    quarantined = models.BooleanField(default=False)

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name

    @property
    def num_devices(self) -> int:
        """How many devices it owns."""
        return len(devices_of(self.device))

    @property
    def is_cpu(self) -> bool:
        """Whether it computes on the processor."""
        return devices_of(self.device)[0] == "cpu"


class IdempotencyKey(models.Model):
    """The answer a repeated request with the same `Idempotency-Key` gets again."""

    owner = models.ForeignKey(User, on_delete=models.PROTECT, related_name="+")
    key = models.CharField(max_length=200)
    digest = models.CharField(max_length=64)
    status = models.PositiveSmallIntegerField(default=0)  # 0: the first request is still running
    body = models.JSONField(default=dict)
    created_at = models.DateTimeField(default=timezone.now, db_index=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=("owner", "key"), name="one_answer_per_key"),
        ]

    def __str__(self) -> str:
        return self.key


class AuditEntry(models.Model):
    """What somebody did that others may have to account for later; rows are only ever added."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    actor = models.ForeignKey(User, on_delete=models.PROTECT, null=True, related_name="+")
    action = models.CharField(max_length=60)
    target = models.CharField(max_length=200, blank=True)
    details = models.JSONField(default=dict, blank=True)
    created_at = models.DateTimeField(default=timezone.now, db_index=True)

    class Meta:
        ordering = ("-created_at",)
        verbose_name_plural = "audit entries"

    def __str__(self) -> str:
        return f"{self.action} {self.target}"

    @classmethod
    def write(cls, actor: User | None, action: str, target: object = "", **details: object) -> None:
        """Add one entry."""
        cls.objects.create(actor=actor, action=action, target=str(target)[:200], details=details)


def seen_since(seconds: float) -> datetime:
    """Return the moment after which a heartbeat must lie to count as alive."""
    return timezone.now() - timedelta(seconds=seconds)

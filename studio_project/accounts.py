"""People: who may sign up, the first administrator, and what deactivating somebody means."""

from __future__ import annotations

import secrets
from typing import Any

from allauth.account.adapter import DefaultAccountAdapter
from django.conf import settings
from django.db import transaction
from django.db.models import F
from django.http import HttpRequest
from django.utils import timezone

from studio_project import events, jobs
from studio_project.models import ApiToken, AuditEntry, Invitation, User

INVITATION_SESSION_KEY = "studio_invitation"


class AccountAdapter(DefaultAccountAdapter):
    """Sign-up as STUDIO_SIGNUP says: open, by invitation, or closed."""

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        """Say whether this visitor may make an account."""
        if settings.STUDIO_SIGNUP == "open":
            return True
        return settings.STUDIO_SIGNUP == "invite" and _invitation(request) is not None

    def save_user(self, request: HttpRequest, user: User, form: Any, commit: bool = True) -> User:
        """Make the account and use up the invitation it came with."""
        with transaction.atomic():
            user = super().save_user(request, user, form, commit)
            invitation = _invitation(request)
            if invitation is not None and commit:
                Invitation.objects.filter(pk=invitation.pk).update(accepted_at=timezone.now())
                request.session.pop(INVITATION_SESSION_KEY, None)
        return user


def _invitation(request: HttpRequest) -> Invitation | None:
    return Invitation.open_for(request.session.get(INVITATION_SESSION_KEY, ""))


def ensure_first_administrator() -> tuple[str, str] | None:
    """Make the first administrator on a site that has none.

    Returns:
        Name and password when the password was made up here and must be shown once, else None.
    """
    if User.objects.filter(is_superuser=True).exists():
        return None
    name = settings.STUDIO_ADMIN_USERNAME or "admin"
    password = settings.STUDIO_ADMIN_PASSWORD or secrets.token_urlsafe(12)
    User.objects.create_superuser(name, email="", password=password)
    return None if settings.STUDIO_ADMIN_PASSWORD else (name, password)


def deactivate(user: User, *, actor: User | None = None) -> None:
    """Shut an account: sessions, sockets and tokens end, queued jobs are canceled, work stays."""
    with transaction.atomic():
        User.objects.filter(pk=user.pk).update(
            is_active=False, session_epoch=F("session_epoch") + 1
        )
        ApiToken.objects.filter(owner=user, revoked_at=None).update(revoked_at=timezone.now())
        AuditEntry.write(actor, "user.deactivated", user.get_username())
    for job_class in jobs.job_classes():
        for job in job_class.objects.filter(owner=user).live():
            job.request_cancel()
    events.end_sessions(user.pk)


def activate(user: User, *, actor: User | None = None) -> None:
    """Open a deactivated account again; its tokens stay revoked."""
    with transaction.atomic():
        User.objects.filter(pk=user.pk).update(is_active=True)
        AuditEntry.write(actor, "user.activated", user.get_username())

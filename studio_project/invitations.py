"""The page behind an invitation link."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _

from studio_project.accounts import INVITATION_SESSION_KEY
from studio_project.models import Invitation


def accept(request: HttpRequest, secret: str) -> HttpResponse:
    """Remember the invitation for the sign-up form, or say that it is no longer good."""
    if Invitation.open_for(secret) is None:
        messages.error(request, _("This invitation has expired or was already used."))
        return redirect("account_login")
    request.session[INVITATION_SESSION_KEY] = secret
    return redirect("account_signup")

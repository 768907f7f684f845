"""Invite one person by e-mail."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.mail import send_mail
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.core.validators import validate_email
from django.urls import reverse
from django.utils import translation
from django.utils.translation import gettext as _

from studio_project.models import Invitation, User


class Command(BaseCommand):
    """Print an invitation link, and send it when e-mail is set up."""

    help = "Invite EMAIL: prints a link that is good for one account and 14 days."

    def add_arguments(self, parser: CommandParser) -> None:
        """Take the address, and the language of the mail."""
        parser.add_argument("email")
        parser.add_argument(
            "--language",
            choices=[code for code, _name in settings.LANGUAGES],
            default="",
            help="of the mail; without it the one that the site's administrator chose",
        )

    def handle(self, *args: Any, email: str, language: str, **options: Any) -> None:
        """Make the invitation."""
        try:
            validate_email(email)
        except ValidationError as error:
            raise CommandError(f"{email!r} is not an e-mail address.") from error
        if settings.STUDIO_SIGNUP == "closed":
            raise CommandError("STUDIO_SIGNUP is closed; set it to invite first.")
        _row, secret = Invitation.issue(email)
        link = settings.STUDIO_BASE_URL + reverse("invitation", args=[secret])
        if settings.STUDIO_EMAIL_URL:
            with translation.override(language or _administrators_language()):
                _send(email, link)
        self.stdout.write(link)


def _administrators_language() -> str:
    """Return the language of whoever administers the site, who is who invites."""
    administrators = User.objects.filter(is_superuser=True, is_active=True).exclude(language="")
    chosen = administrators.order_by("pk").values_list("language", flat=True).first()
    return chosen or settings.LANGUAGE_CODE


def _send(email: str, link: str) -> None:
    text = _(
        "You are invited to Studio, where a team trains image models on its own pictures.\n\n"
        "Open this link to make your account. It is good for one account and 14 days:\n"
        "%(link)s\n"
    )
    send_mail(_("Your invitation to Studio"), text % {"link": link}, None, [email])

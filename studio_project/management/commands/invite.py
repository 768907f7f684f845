"""Invite one person by e-mail."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.mail import send_mail
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.core.validators import validate_email
from django.urls import reverse

from studio_project.models import Invitation


class Command(BaseCommand):
    """Print an invitation link, and send it when e-mail is set up."""

    help = "Invite EMAIL: prints a link that is good for one account and 14 days."

    def add_arguments(self, parser: CommandParser) -> None:
        """Take the address."""
        parser.add_argument("email")

    def handle(self, *args: Any, email: str, **options: Any) -> None:
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
            send_mail(
                "Your invitation to Studio", f"Open this link to sign up:\n{link}\n", None, [email]
            )
        self.stdout.write(link)

"""`manage.py invite`: a link for one account, and a mail in the language of whoever invites."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from django.core import mail
from django.core.management import CommandError, call_command
from django.test import Client

from studio_project.models import Invitation, User


@pytest.fixture(autouse=True)
def _mail(settings: Any, db: None) -> None:
    settings.STUDIO_EMAIL_URL = "smtp://mail.example.org"
    settings.STUDIO_SIGNUP = "invite"


def _invite(**options: str) -> str:
    out = StringIO()
    call_command("invite", "ana@example.org", stdout=out, **options)
    return out.getvalue().strip()


def test_the_link_is_printed_sent_and_opens_the_sign_up() -> None:
    link = _invite()
    (sent,) = mail.outbox
    assert sent.to == ["ana@example.org"]
    assert link in sent.body
    path = "/" + link.partition("://")[2].partition("/")[2]
    answer = Client().get(path, follow=True)
    assert 'name="password1"' in answer.content.decode()


@pytest.mark.parametrize(
    ("chosen", "option", "subject"),
    [
        ("", "", "Your invitation to Studio"),
        ("fr", "", "Votre invitation à Studio"),
        ("fr", "en", "Your invitation to Studio"),
        ("", "fr", "Votre invitation à Studio"),
    ],
)
def test_the_mail_speaks_the_administrators_language_or_the_one_asked_for(
    chosen: str, option: str, subject: str
) -> None:
    User.objects.create_superuser("root", "", "correct horse 7", language=chosen)
    _invite(language=option)
    assert mail.outbox[0].subject == subject
    assert ("Ouvrez ce lien" in mail.outbox[0].body) == subject.startswith("Votre")


def test_without_mail_only_the_link_is_printed(settings: Any) -> None:
    settings.STUDIO_EMAIL_URL = ""
    assert _invite().startswith("http")
    assert mail.outbox == []


def test_what_cannot_be_invited_is_refused(settings: Any) -> None:
    with pytest.raises(CommandError, match="not an e-mail address"):
        call_command("invite", "ana")
    settings.STUDIO_SIGNUP = "closed"
    with pytest.raises(CommandError, match="closed"):
        _invite()
    assert not Invitation.objects.exists()

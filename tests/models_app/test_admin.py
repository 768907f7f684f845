"""Curating models in the administration."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from PIL import Image

from models_app.models import DiffusionModel
from studio_project.models import AuditEntry, User

Make = Callable[..., DiffusionModel]
Browser = Callable[..., Client]
LIST = "/admin/models_app/diffusionmodel/"


def form(model: DiffusionModel, **changes: Any) -> dict[str, Any]:
    return {
        "title": model.title,
        "description": model.description,
        "trigger_words": "[]",
        "default_settings": "{}",
        "is_active": "on",
        **changes,
    }


@pytest.fixture
def curator(db: None) -> User:
    user = User.objects.create_user("curator", password="correct horse 7", is_staff=True)
    names = ("view_diffusionmodel", "change_diffusionmodel")
    user.user_permissions.set(Permission.objects.filter(codename__in=names))
    return user


def test_a_curator_describes_and_shows_a_model(
    browser: Browser, make_base: Make, curator: User, sent: list[Any]
) -> None:
    base = make_base()
    out = BytesIO()
    Image.new("RGB", (30, 30)).save(out, "PNG")
    data = form(
        base,
        title="Curated",
        trigger_words='["sks"]',
        default_settings='{"width": 64}',
        thumbnail=SimpleUploadedFile("a.png", out.getvalue()),
    )
    answer = browser(curator).post(f"{LIST}{base.pk}/change/", data)
    assert answer.status_code == 302
    base.refresh_from_db()
    assert (base.title, base.trigger_words) == ("Curated", ["sks"])
    assert base.default_settings == {"width": 64}
    assert base.thumbnail_key
    assert base.version == 3
    assert any(event["title"] == "Curated" for _, event in sent)
    assert AuditEntry.objects.filter(action="model.curated", actor=curator).exists()


@pytest.mark.parametrize(
    "changes",
    [{"default_settings": '{"steps": 3}'}, {"trigger_words": '"fox"'}, {"title": ""}],
)
def test_wrong_values_are_said_beside_the_field(
    browser: Browser, make_base: Make, staff: User, changes: dict[str, str]
) -> None:
    base = make_base()
    answer = browser(staff).post(f"{LIST}{base.pk}/change/", form(base, **changes))
    assert answer.status_code == 200
    assert set(answer.context["adminform"].form.errors) == set(changes)
    base.refresh_from_db()
    assert base.version == 1


def test_a_picture_that_is_none_is_said(browser: Browser, make_base: Make, staff: User) -> None:
    base = make_base()
    data = form(base, thumbnail=SimpleUploadedFile("a.png", b"no"))
    answer = browser(staff).post(f"{LIST}{base.pk}/change/", data, follow=True)
    assert "JPEG, PNG or WebP" in answer.content.decode()


def test_actions_switch_models_off_and_on(
    browser: Browser, make_base: Make, make_lora: Make, alice: User, staff: User,
    heard: list[Any],
) -> None:  # fmt: skip
    base, private = make_base(), make_lora(alice)
    data = {"action": "deactivate_models", "_selected_action": [base.pk, private.pk]}
    answer = browser(staff).post(LIST, data, follow=True)
    base.refresh_from_db()
    private.refresh_from_db()
    assert (base.is_active, private.is_active) == (False, True)
    assert heard == [(base.pk, "deactivated")]
    assert "1 model was changed" in answer.content.decode()
    data["action"] = "activate_models"
    browser(staff).post(LIST, data)
    base.refresh_from_db()
    assert base.is_active


def test_lists_search_and_filter(
    browser: Browser, make_base: Make, make_lora: Make, alice: User, staff: User
) -> None:
    make_base("photo")
    make_base("painter", is_inpainting=True)
    make_lora(alice, title="Red fox")
    client = browser(staff)
    shown = client.get(LIST, {"is_inpainting__exact": "1"}).content.decode()
    assert "painter" in shown and "photo" not in shown and "For inpainting" in shown
    assert "Red fox" in client.get(LIST, {"q": "alice"}).content.decode()
    assert "Red fox" not in client.get(LIST, {"type__exact": "base_model"}).content.decode()
    # Models are neither made nor deleted here: their files would not follow.
    assert client.get(f"{LIST}add/").status_code == 403


def test_private_models_open_with_a_permission_and_on_record(
    browser: Browser, make_lora: Make, alice: User, curator: User, staff: User
) -> None:
    model = make_lora(alice, title="Secret fox")
    url = f"{LIST}{model.pk}/change/"
    assert browser(curator).get(url).status_code == 403
    assert not AuditEntry.objects.exists()
    answer = browser(staff).get(url)
    assert answer.status_code == 200
    assert AuditEntry.objects.get().action == "model.opened"
    assert browser(staff).post(url, form(model, title="Taken")).status_code == 403
    model.refresh_from_db()
    assert model.title == "Secret fox"


def test_the_administration_is_for_staff(browser: Browser, make_base: Make, alice: User) -> None:
    assert browser(alice).get(f"{LIST}{make_base().pk}/change/").status_code == 302

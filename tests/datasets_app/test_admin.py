"""What administrators see of datasets, and what stays on record."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.contrib.auth.models import Permission
from django.test import Client

from datasets_app import services
from datasets_app.models import Dataset
from studio_project.models import AuditEntry, User, Visibility
from tests.datasets_app.makers import png, upload

Browser = Callable[[User | None], Client]
LIST = "/admin/datasets_app/dataset/"


@pytest.fixture
def helper(db: None) -> User:
    """Staff who may list datasets, and nothing else."""
    user = User.objects.create_user("helper", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_dataset"))
    return user


def test_the_list_shows_owner_and_size_and_no_contents(
    browser: Browser, alice: User, helper: User, foxes: Dataset
) -> None:
    services.add_files(alice, foxes, [upload("fox.png", png(1)), upload("fox.txt", b"my secret")])
    page = browser(helper).get(LIST, {"q": "alice"}).content.decode()
    assert "Foxes" in page and "alice" in page
    assert "my secret" not in page
    assert "Foxes" not in browser(helper).get(LIST, {"q": "nobody"}).content.decode()


def test_opening_private_contents_needs_a_permission_and_leaves_a_record(
    browser: Browser, alice: User, helper: User, foxes: Dataset
) -> None:
    services.add_files(
        alice, foxes, [upload("fox.png", png(1)), upload("fox.txt", b"<b>my secret</b>")]
    )
    address = f"{LIST}{foxes.pk}/change/"
    assert browser(helper).get(address).status_code == 403
    assert not AuditEntry.objects.filter(action="dataset.opened").exists()
    helper.user_permissions.add(Permission.objects.get(codename="view_private_dataset"))
    page = browser(helper).get(address)
    assert page.status_code == 200
    assert "&lt;b&gt;my secret&lt;/b&gt;" in page.content.decode()
    entry = AuditEntry.objects.get(action="dataset.opened")
    assert (entry.actor, entry.target) == (helper, str(foxes.pk))


def test_nothing_can_be_typed_over_or_added(browser: Browser, staff: User, foxes: Dataset) -> None:
    client = browser(staff)
    assert client.get(f"{LIST}add/").status_code == 403
    assert client.post(f"{LIST}{foxes.pk}/change/", {"name": "Mine"}).status_code == 403
    assert client.post(f"{LIST}{foxes.pk}/delete/", {"post": "yes"}).status_code == 403


def test_actions_go_through_the_services(
    browser: Browser, alice: User, staff: User, foxes: Dataset
) -> None:
    services.add_files(alice, foxes, [upload("fox.png", png(1))])
    services.share_dataset(alice, foxes, Visibility.SHARED)
    client = browser(staff)
    chosen = {"_selected_action": [foxes.pk]}
    assert client.post(LIST, {"action": "take_back", **chosen}).status_code == 302
    foxes.refresh_from_db()
    assert foxes.visibility == Visibility.PRIVATE
    assert client.post(LIST, {"action": "delete_datasets", **chosen}).status_code == 302
    alice.refresh_from_db()
    assert alice.stored_bytes == 0
    assert not Dataset.objects.live().exists()
    assert "Foxes" not in client.get(LIST).content.decode()
    entry = AuditEntry.objects.get(action="dataset.deleted")
    assert entry.actor == staff


def test_actions_need_their_permission(browser: Browser, helper: User, foxes: Dataset) -> None:
    chosen = {"action": "delete_datasets", "_selected_action": [foxes.pk]}
    browser(helper).post(LIST, chosen)
    assert Dataset.objects.live().filter(pk=foxes.pk).exists()

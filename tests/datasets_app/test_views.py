"""The pages of datasets: what they show, to whom, and at what cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client

from datasets_app.models import Dataset, DatasetImage
from studio_project.models import User
from tests.factories import make_dataset

Browser = Callable[[User | None], Client]


def test_list_shows_mine_and_the_shared_and_nothing_else(
    browser: Browser, alice: User, bob: User
) -> None:
    make_dataset(alice, name="My foxes")
    make_dataset(bob, name="Shared owls", visibility="shared")
    make_dataset(bob, name="Secret owls")
    page = browser(alice).get("/datasets").content.decode()
    assert "My foxes" in page
    assert "Shared owls" in page
    assert "Secret owls" not in page


@pytest.mark.parametrize(
    ("query", "names"),
    [("?whose=mine", ["My foxes"]), ("?whose=shared", ["Owls"]), ("?search=OWL", ["Owls"])],
)
def test_list_can_be_narrowed(
    browser: Browser, alice: User, bob: User, query: str, names: list[str]
) -> None:
    make_dataset(alice, name="My foxes")
    make_dataset(bob, name="Owls", visibility="shared")
    page = browser(alice).get(f"/datasets{query}")
    assert [dataset.name for dataset in page.context["datasets"]] == names


def test_empty_list_offers_the_next_step(browser: Browser, alice: User) -> None:
    page = browser(alice).get("/datasets").content.decode()
    assert "No datasets yet" in page
    assert 'data-open="new-dataset"' in page


def test_list_pages_by_key(browser: Browser, alice: User) -> None:
    for number in range(30):
        make_dataset(alice, name=f"Set {number:02}", captions=())
    first = browser(alice).get("/datasets")
    assert len(first.context["datasets"]) == 24
    rest = browser(alice).get(first.context["next"])
    assert len(rest.context["datasets"]) == 6
    assert b"<html" not in rest.content


def test_list_costs_the_same_for_one_and_for_twenty(
    browser: Browser, alice: User, django_assert_max_num_queries: Any
) -> None:
    for number in range(20):
        make_dataset(alice, name=f"Set {number}", captions=("a fox",))
    client = browser(alice)
    with django_assert_max_num_queries(6):
        client.get("/datasets")


@pytest.mark.parametrize("part", ["", "?part=pictures", "?part=counts"])
def test_a_stranger_gets_404(browser: Browser, alice: User, bob: User, part: str) -> None:
    dataset = make_dataset(alice)
    assert browser(bob).get(f"/datasets/{dataset.pk}{part}").status_code == 404


def test_a_deleted_dataset_is_gone(browser: Browser, alice: User) -> None:
    dataset = make_dataset(alice)
    Dataset.objects.filter(pk=dataset.pk).update(deleted_at=dataset.created_at)
    assert browser(alice).get(f"/datasets/{dataset.pk}").status_code == 404


def test_owner_may_edit_and_a_reader_may_not(browser: Browser, alice: User, bob: User) -> None:
    dataset = make_dataset(alice, visibility="shared")
    mine = browser(alice).get(f"/datasets/{dataset.pk}").content.decode()
    theirs = browser(bob).get(f"/datasets/{dataset.pk}").content.decode()
    image = DatasetImage.objects.filter(dataset=dataset)[0]
    address = f"/api/datasets/{dataset.pk}/images/{image.pk}"
    assert f'data-caption="{address}"' in mine
    assert f'data-remove="{address}"' in mine
    assert "data-caption" not in theirs
    assert "data-remove" not in theirs
    assert 'data-upload=""' in theirs
    assert "a fox in the snow" in theirs


def test_counts_filter_the_pictures(browser: Browser, alice: User) -> None:
    dataset = make_dataset(alice, captions=("a fox", "", ""))
    address = f"/datasets/{dataset.pk}"
    page = browser(alice).get(address)
    assert page.context["counts"] == {"all": 3, "uncaptioned": 2, "small": 3}
    silent = browser(alice).get(f"{address}?show=uncaptioned&part=pictures")
    assert len(silent.context["pictures"]) == 2
    assert b"<html" not in silent.content


def test_deleted_pictures_are_not_shown(browser: Browser, alice: User) -> None:
    dataset = make_dataset(alice)
    DatasetImage.objects.filter(dataset=dataset).update(deleted_at=dataset.created_at)
    page = browser(alice).get(f"/datasets/{dataset.pk}")
    assert page.context["pictures"] == []


def test_captions_are_text_and_never_markup(browser: Browser, alice: User) -> None:
    dataset = make_dataset(alice, captions=("</textarea><script>alert(1)</script>",))
    page = browser(alice).get(f"/datasets/{dataset.pk}").content.decode()
    assert "<script>alert" not in page


def test_deleting_names_what_goes(browser: Browser, alice: User) -> None:
    dataset = make_dataset(alice, name="Foxes")
    page = browser(alice).get(f"/datasets/{dataset.pk}").content.decode()
    assert "“Foxes” goes, with its 2 pictures and their captions." in page
    DatasetImage.objects.filter(dataset=dataset).first().delete()
    counts = browser(alice).get(f"/datasets/{dataset.pk}?part=counts").content.decode()
    assert "“Foxes” goes, with its 1 picture and its caption." in counts
    DatasetImage.objects.filter(dataset=dataset).delete()
    counts = browser(alice).get(f"/datasets/{dataset.pk}?part=counts").content.decode()
    assert "“Foxes” goes. It holds no pictures." in counts

"""The pages of models: what they show, to whom, and at what cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client

from models_app.models import DiffusionModel
from studio_project.models import User
from tests.factories import make_base, make_lora

Browser = Callable[[User | None], Client]


def _titles(response: Any) -> set[str]:
    return {model.title for model in response.context["models"]}


def test_list_shows_mine_the_shared_and_the_sites(browser: Browser, alice: User, bob: User) -> None:
    base = make_base("Site base")
    make_lora(alice, base, "Mine")
    make_lora(bob, base, "Shared", visibility="shared")
    make_lora(bob, base, "Secret")
    page = browser(alice).get("/models")
    assert _titles(page) == {"Site base", "Mine", "Shared"}
    assert b"Secret" not in page.content


@pytest.mark.parametrize(
    ("query", "titles"),
    [
        ("?category=video", {"Film"}),
        ("?category=image", {"Site base", "Mine"}),
        ("?owner=me", {"Mine"}),
        ("?type=base_model", {"Site base", "Film"}),
        ("?search=min", {"Mine"}),
        ("?category=nonsense", {"Site base", "Mine", "Film"}),
    ],
)
def test_list_can_be_narrowed(browser: Browser, alice: User, query: str, titles: set[str]) -> None:
    base = make_base("Site base")
    make_base("Film", category="video", architecture="svd")
    make_lora(alice, base, "Mine")
    assert _titles(browser(alice).get(f"/models{query}")) == titles


def test_a_model_that_is_not_here_says_why_and_offers_no_use(browser: Browser, alice: User) -> None:
    make_base("Far away", availability="remote", path="")
    page = browser(alice).get("/models").content.decode()
    assert "fetch_model Far away" in page
    assert "/text-to-image?model=" not in page


def test_a_ready_model_can_be_used_from_its_card(browser: Browser, alice: User) -> None:
    base, painter = make_base(), make_base("Painter", is_inpainting=True)
    client = browser(alice)
    page = client.get("/models").content.decode()
    assert f'/text-to-image?model={base.pk}"' in page
    assert f'/text-to-image?model={painter.pk}&amp;mode=inpaint"' in page
    details = [client.get(f"/models/{row.pk}").content.decode() for row in (base, painter)]
    assert ["for parts of pictures" in detail for detail in details] == [False, True]
    assert ["Train on it" in detail for detail in details] == [True, False]


def test_list_costs_the_same_for_two_and_for_twenty(
    browser: Browser, alice: User, django_assert_max_num_queries: Any
) -> None:
    base = make_base()
    for number in range(20):
        make_lora(alice, base, f"Fox {number}", trigger_words=["zorp"])
    client = browser(alice)
    with django_assert_max_num_queries(6):
        client.get("/models")


def test_a_stranger_gets_404(browser: Browser, alice: User, bob: User) -> None:
    model = make_lora(alice, make_base())
    assert browser(bob).get(f"/models/{model.pk}").status_code == 404
    assert browser(alice).get(f"/models/{model.pk}").status_code == 200


def test_a_deleted_model_is_gone(browser: Browser, alice: User) -> None:
    model = make_lora(alice, make_base())
    DiffusionModel.objects.filter(pk=model.pk).update(deleted_at=model.created_at)
    assert browser(alice).get(f"/models/{model.pk}").status_code == 404


def test_only_who_may_change_a_model_sees_how(
    browser: Browser, alice: User, bob: User, staff: User
) -> None:
    model = make_lora(alice, make_base(), visibility="shared")
    address = f"/models/{model.pk}"
    change = f'data-api="/api/models/{model.pk}"'
    assert change in browser(alice).get(address).content.decode()
    assert change in browser(staff).get(address).content.decode()
    assert change not in browser(bob).get(address).content.decode()


def test_default_settings_read_as_words(browser: Browser, alice: User) -> None:
    base = make_base(default_settings={"num_inference_steps": 20, "training": {"rank": 4}})
    page = browser(alice).get(f"/models/{base.pk}")
    assert [str(words) for words, _value in page.context["settings"]] == ["Steps"]
    assert b"num_inference_steps" not in page.content


def test_trigger_words_can_be_copied(browser: Browser, alice: User) -> None:
    model = make_lora(alice, make_base(), trigger_words=["zorbfox"])
    page = browser(alice).get(f"/models/{model.pk}").content.decode()
    assert 'data-copy="zorbfox"' in page


@pytest.mark.parametrize("is_dora", [False, True])
def test_both_layouts_of_a_lora_are_offered_in_plain_words(
    browser: Browser, alice: User, is_dora: bool
) -> None:
    files = [{"name": "a"}, {"name": "k", "layout": "kohya", "is_dora": is_dora}]
    lora = make_lora(alice, make_base(), files=files)
    page = browser(alice).get(f"/models/{lora.pk}").content.decode()
    for words, query in (
        ("for Studio and diffusers", ""),
        ("for A1111, Forge and ComfyUI", "?layout=kohya"),
    ):
        assert words in page
        assert f'href="/api/models/{lora.pk}/download{query}"' in page
    assert ("This is a DoRA." in page) is is_dora


def test_what_has_one_layout_is_downloaded_at_once(browser: Browser, alice: User) -> None:
    base = make_base()
    lora = make_lora(alice, base)
    full = make_base("Whole", type="full", owner=alice, visibility="private", base_model=base)
    for model, has_link in ((lora, True), (full, True), (base, False)):
        page = browser(alice).get(f"/models/{model.pk}").content.decode()
        assert (f'href="/api/models/{model.pk}/download"' in page) is has_link
        assert "download-model" not in page

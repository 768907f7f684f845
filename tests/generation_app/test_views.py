"""The pages of generating: the form, the grid of pictures, and one picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from generation_app.engine.request import ARCHITECTURE_DEFAULTS, resolve_request
from studio_project.models import User
from tests.factories import make_base, make_dataset, make_generation, make_image, make_lora

Browser = Callable[[User | None], Client]


def test_form_knows_the_defaults_of_every_family(browser: Browser, alice: User) -> None:
    page = browser(alice).get("/text-to-image")
    defaults = json.loads(page.context["defaults_json"])
    assert set(defaults) == set(ARCHITECTURE_DEFAULTS)
    resolved = resolve_request({}, architecture="sd1").as_parameters()
    ours = {**defaults["sd1"], "hires_scale": resolved["hires_scale"]}
    assert all(ours[name] == resolved[name] for name in resolved if name in ours)
    # What the switch of the second pass stands at when it is turned on.
    assert defaults["sd1"]["hires_scale"] == 2.0
    assert defaults["svd"]["num_frames"] == 14


def test_form_opens_with_a_picture_that_the_user_may_see(
    browser: Browser, alice: User, bob: User
) -> None:
    image = make_image(make_generation(alice))
    shown = make_dataset(alice).images.first()
    for query in (f"from={image.pk}", f"dataset_image={shown.pk}"):
        page = browser(alice).get(f"/text-to-image?mode=inpaint&{query}")
        start = json.loads(page.context["start_json"])
        assert browser(alice).get(start["url"]).status_code == 200
        assert (start["width"], start["height"]) == (64, 64)
        assert page.context["mode"] == "inpaint"
        assert browser(bob).get(f"/text-to-image?{query}").context["start_json"] == "null"
    assert browser(alice).get("/text-to-image?from=x&dataset_image=9").status_code == 200


def test_form_offers_as_many_pictures_as_the_user_may_ask_for(
    browser: Browser, alice: User
) -> None:
    User.objects.filter(pk=alice.pk).update(max_images_per_request=3)
    page = browser(alice).get("/text-to-image").content.decode()
    assert 'name="num_images" data-number min="1.0" max="3.0"' in page


def test_form_opens_with_what_the_address_names(browser: Browser, alice: User) -> None:
    page = browser(alice).get("/text-to-image?model=12&image=34&job=x%22y").content.decode()
    assert 'value="12"' in page
    assert 'data-image="34"' in page
    assert 'data-job="x&quot;y"' in page


def test_grid_shows_my_pictures_alone(browser: Browser, alice: User, bob: User) -> None:
    mine = make_image(make_generation(alice))
    theirs = make_image(make_generation(bob))
    page = browser(alice).get("/images")
    assert page.context["images"] == [mine]
    assert f"/images/{theirs.pk}" not in page.content.decode()


def test_grid_leaves_deleted_pictures_out(browser: Browser, alice: User) -> None:
    make_image(make_generation(alice), deleted_at=timezone.now())
    assert browser(alice).get("/images").context["images"] == []


def test_empty_grid_offers_the_next_step(browser: Browser, alice: User) -> None:
    page = browser(alice).get("/images").content.decode()
    assert "No images yet" in page
    assert 'href="/text-to-image"' in page


def test_grid_can_be_searched_and_kept_to_one_model(browser: Browser, alice: User) -> None:
    base = make_base()
    fox = make_image(make_generation(alice, make_lora(alice, base, "Fox")))
    make_image(make_generation(alice, base, parameters={"prompt": "an owl"}))
    assert browser(alice).get("/images?search=FOX").context["images"] == [fox]
    of_model = browser(alice).get(f"/images?part=tiles&model={fox.job.model_id}")
    assert of_model.context["images"] == [fox]
    for odd in ("x", "9" * 5000):
        assert browser(alice).get(f"/images?part=tiles&model={odd}").context["images"] == []


def test_grid_costs_the_same_for_one_and_for_forty(
    browser: Browser, alice: User, django_assert_max_num_queries: Any
) -> None:
    job = make_generation(alice)
    for index in range(40):
        make_image(job, index)
    client = browser(alice)
    with django_assert_max_num_queries(6):
        client.get("/images")


def test_grid_pages_by_key(browser: Browser, alice: User) -> None:
    job = make_generation(alice)
    for index in range(65):
        make_image(job, index)
    first = browser(alice).get("/images")
    rest = browser(alice).get(first.context["next"])
    assert len(first.context["images"]) == 60
    assert len(rest.context["images"]) == 5


@pytest.mark.parametrize("part", ["", "?part=panel"])
def test_a_stranger_gets_404(browser: Browser, alice: User, bob: User, part: str) -> None:
    image = make_image(make_generation(alice))
    assert browser(bob).get(f"/images/{image.pk}{part}").status_code == 404
    assert browser(alice).get(f"/images/{image.pk}{part}").status_code == 200


def test_a_picture_shows_its_parameters_and_its_neighbours(browser: Browser, alice: User) -> None:
    job = make_generation(alice, make_base())
    now = timezone.now()
    old, middle, new = (
        make_image(job, index, created_at=now + timedelta(seconds=index)) for index in range(3)
    )
    page = browser(alice).get(f"/images/{middle.pk}")
    assert page.context["newer"] == new
    assert page.context["older"] == old
    facts = dict((str(name), value) for name, value in page.context["facts"])
    assert facts["Seed"] == str(middle.seed)
    assert f"/text-to-image?image={middle.pk}" in page.content.decode()


def test_a_picture_keeps_the_name_of_a_model_that_is_gone(browser: Browser, alice: User) -> None:
    image = make_image(make_generation(alice, None, model_title="Lost fox"))
    page = browser(alice).get(f"/images/{image.pk}").content.decode()
    assert "Lost fox" in page
    assert "/models/" not in page


def test_prompts_are_text_and_never_markup(browser: Browser, alice: User) -> None:
    job = make_generation(alice, parameters={"prompt": '"><script>alert(1)</script>'})
    image = make_image(job)
    for address in ("/images", f"/images/{image.pk}"):
        assert b"<script>alert" not in browser(alice).get(address).content

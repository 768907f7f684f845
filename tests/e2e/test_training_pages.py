"""Every control of the training pages, driven once in a real browser."""

from __future__ import annotations

import re
from typing import Any

from playwright.sync_api import Page, expect

from studio_project.management.demo_client import DemoClient
from tests.e2e import work
from tests.e2e.site import PASSWORD, Site

RUN_MS = 240_000


def _sign_in(page: Page, client: DemoClient) -> None:
    page.goto("/accounts/login/")
    page.fill("input[name=login]", client.name)  # type: ignore[attr-defined]
    page.fill("input[name=password]", PASSWORD)
    page.click("main button[type=submit]")
    expect(page).to_have_url(re.compile(r"/$"))


def _press(page: Page, name: str) -> None:
    page.locator("#job-head").get_by_role("button", name=name, exact=True).click()


def _confirm(page: Page, name: str) -> None:
    page.get_by_role("dialog").get_by_role("button", name=name).click()


def _status(client: DemoClient, job: str) -> Any:
    return client.call("GET", f"/api/training/{job}")


def test_pause_go_on_stop_and_keep_then_choose_and_train_further(page: Page, site: Site) -> None:
    client = site.user("tina")
    job = work.start_training(
        client,
        work.dataset(client),
        max_train_steps=3000,
        checkpoint_every_steps=20,
        sample_every_steps=20,
        sample_inference_steps=2,
        sample_prompts=["a zorp"],
        control_prompt="",
    )
    _sign_in(page, client)
    page.goto(f"/training/{job}")
    use = page.locator("#checkpoints").get_by_role("button", name="Use this checkpoint")
    expect(use.first).to_be_visible(timeout=RUN_MS)

    _press(page, "Pause")
    go_on = page.locator("#job-head").get_by_role("button", name="Go on")
    expect(go_on).to_be_visible(timeout=RUN_MS)
    go_on.click()
    expect(page.locator("#job-head").get_by_role("button", name="Pause")).to_be_visible(
        timeout=RUN_MS
    )

    # A checkpoint becomes a model while the training is under way.
    row = page.locator("#checkpoints li").filter(has=page.get_by_role("button")).last
    number = row.get_attribute("id")
    row.get_by_role("button", name="Use this checkpoint").click()
    chosen = page.locator(f"#{number}").get_by_role("link", name=re.compile("creatures v1, step"))
    expect(chosen).to_be_visible()

    _press(page, "Stop and keep")
    _confirm(page, "Stop and keep")
    expect(page.get_by_role("link", name="Use it now").first).to_be_visible(timeout=RUN_MS)
    expect(page.get_by_role("link", name="The result")).to_be_visible()
    expect(page.get_by_text("what it had learned by then is kept")).to_be_visible()
    state = _status(client, job)
    assert 0 < state["step"] < state["total_steps"]

    page.fill("#more-steps", "3")
    page.get_by_role("button", name="Train further").click()
    expect(page).not_to_have_url(re.compile(job))
    expect(page.get_by_text("goes on from an earlier training")).to_be_visible()
    expect(page.get_by_role("link", name="Use it now").first).to_be_visible(timeout=RUN_MS)


def test_the_form_shows_each_method_and_what_it_comes_to(page: Page, site: Site) -> None:
    client = site.user("theo")
    work.dataset(client)
    _sign_in(page, client)
    page.goto("/training/new")
    review = page.locator("#review")
    expect(review).to_contain_text("Effective learning rate")
    for fold in page.locator("details.fold:not([hidden])").all():
        fold.locator("summary").click()
    expect(page.locator("[name=rank]")).to_be_visible()
    expect(page.locator("[name=class_prompt]")).to_be_hidden()

    page.locator("input[name=type][value=full]").check()
    expect(page.locator("[name=rank]")).to_be_hidden()
    expect(review).to_contain_text("Full fine-tuning")
    page.locator("input[name=type][value=dreambooth]").check()
    page.locator("details.fold:has([name=class_prompt]) summary").click()
    page.fill("[name=class_prompt]", "a red circle")
    page.fill("[name=num_class_images]", "2")
    page.fill("[name=max_train_steps]", "4")
    page.fill("[name=sample_prompts]", "a zorp in space\na zorp at sea")
    page.fill("#trigger-word", "zorp")
    expect(review).to_contain_text("DreamBooth")
    expect(page.locator("#cost-time")).to_contain_text(re.compile("about"), timeout=RUN_MS)
    page.get_by_role("button", name="Create and start").click()
    expect(page).to_have_url(re.compile(r"/training/[0-9a-f-]{36}"))
    job = page.url.rpartition("/")[2]
    state = _status(client, job)
    assert (state["type"], state["config"]["class_prompt"]) == ("dreambooth", "a red circle")
    assert state["config"]["sample_prompts"] == ["a zorp in space", "a zorp at sea"]

    _press(page, "Cancel")
    _confirm(page, "Cancel the training")
    expect(page.locator("#training")).to_have_attribute(
        "data-status", re.compile("canceled|completed"), timeout=RUN_MS
    )

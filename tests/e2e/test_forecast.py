"""The generate page says how long a request will take, before it is sent."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from tests.e2e.site import PASSWORD, Site


def test_the_button_tells_what_the_site_has_learned(site: Site, page: Page) -> None:
    client = site.user()
    page.goto("/accounts/login/")
    page.fill("input[name=login]", client.name)  # type: ignore[attr-defined]
    page.fill("input[name=password]", PASSWORD)
    page.click("main button[type=submit]")
    page.goto("/text-to-image")
    page.fill("#prompt", "a large red star on a blue background")
    expected = page.locator("#expected")
    # Whether anything was painted before depends on which tests ran.
    expect(expected).to_have_text(re.compile(r"about \d|not known yet"))
    page.click("#generate")
    expect(page.locator("#sitting img")).to_have_count(1, timeout=120_000)
    expect(expected).to_have_text(re.compile(r"about \d"))

"""The main job in a real browser, and the French pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e import work
from tests.e2e.site import PASSWORD, Site

TRAINING_MS = 240_000


def _sign_up(page: Page, name: str) -> None:
    page.goto("/accounts/signup/")
    page.fill("input[name=username]", name)
    page.fill("input[name=email]", f"{name}@example.org")
    page.fill("input[name=password1]", PASSWORD)
    page.fill("input[name=password2]", PASSWORD)
    page.click("main button[type=submit]")
    expect(page).to_have_url(re.compile(r"/$"))


def _files(folder: Path) -> list[str]:
    paths = []
    for name, content in work.pictures(6).items():
        path = folder / name
        path.write_bytes(content)
        paths.append(str(path))
    return paths


def _everything_fits_a_telephone(page: Page, training: str) -> None:
    """No page is wider than the screen, and what sticks to its edge can be pressed."""
    page.set_viewport_size({"width": 390, "height": 844})
    for path in (*PAGES, training):
        page.goto(path)
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
    expect(page.locator("#chart-table tbody tr").first).to_be_attached()
    stick = page.locator("#training .stick")
    stick.get_by_role("link", name="Use it now").click(trial=True)
    box = stick.bounding_box()
    assert box is not None and box["height"] < 70, "more than one row of actions"


@pytest.fixture
def second_page(page: Page) -> Iterator[Page]:
    """Another tab of the same person."""
    other = page.context.new_page()
    other.set_default_timeout(20_000)
    yield other
    other.close()


def test_from_sign_up_to_a_picture_of_ones_own_model(
    page: Page, second_page: Page, tmp_path: Path
) -> None:
    _sign_up(page, "clara")

    page.goto("/datasets")
    page.get_by_role("button", name="New dataset").first.click()
    page.fill("#dataset-name", "Zorps")
    page.get_by_role("button", name="Create and add pictures").click()
    expect(page).to_have_url(re.compile(r"/datasets/\d+"))
    page.set_input_files("#files", _files(tmp_path))
    expect(page.locator("#pictures img")).to_have_count(6)
    expect(page.get_by_text("a zorp on a red background").first).to_be_visible()

    # The text-to-image page stands open all the while and is never reloaded.
    second_page.goto("/text-to-image")
    second_page.evaluate("window.notReloaded = true")

    page.get_by_role("link", name="Train on it").click()
    expect(page.locator("model-picker input[role=combobox]")).not_to_have_value("")
    page.fill("#trigger-word", "zorp")
    for fold in page.locator("details.fold:visible").all():
        fold.locator("summary").click()
    page.fill("[name=max_train_steps]", "6")
    page.fill("[name=sample_inference_steps]", "2")
    page.get_by_role("button", name="Create and start").click()
    expect(page).to_have_url(re.compile(r"/training/[0-9a-f-]{36}"))
    training = page.url
    use_it = page.get_by_role("link", name="Use it now").first
    expect(use_it).to_be_visible(timeout=TRAINING_MS)

    notice = second_page.get_by_role("link", name="Use it now")
    expect(notice.first).to_be_visible()
    picker = second_page.locator("model-picker input[role=combobox]").first
    picker.click()
    picker.fill("Zorps")
    second_page.get_by_role("option", name=re.compile("Zorps")).first.click()
    second_page.fill("#prompt", "a zorp on a red background")
    second_page.locator("#prompt").press("Control+Enter")
    expect(second_page.locator("#sitting img").first).to_be_visible(timeout=120_000)
    expect(second_page.locator("#stage img").first).to_be_visible()
    assert second_page.evaluate("window.notReloaded")

    page.goto("/images")
    expect(page.locator("main img").first).to_be_visible()
    _everything_fits_a_telephone(page, training)


def test_with_250_models_the_last_one_is_found_by_typing(page: Page, site: Site) -> None:
    site.manage(
        "shell",
        "-c",
        "from models_app.models import DiffusionModel as M\n"
        "base = M.objects.live().get(type='base_model', category='image', availability='ready')\n"
        "for n in range(250): M.objects.create(name=f'many-{n:03}', title=f'Heron {n:03}', "
        "type='lora', category='image', architecture='sd1', path=f'models/many/{n}', "
        "visibility='shared', base_model=base, availability='ready')",
    )
    try:
        _sign_up(page, "dora")
        page.goto("/text-to-image")
        picker = page.locator("model-picker input[role=combobox]").first
        picker.click()
        picker.fill("Heron 000")
        option = page.get_by_role("option", name=re.compile("Heron 000"))
        expect(option).to_be_visible()
        picker.press("ArrowDown")
        option.click()
        expect(picker).to_have_value(re.compile("Heron 000"))
    finally:
        site.manage(
            "shell",
            "-c",
            "from models_app.models import DiffusionModel as M\n"
            "M.objects.filter(name__startswith='many-').delete()",
        )


def _folders(root: Path) -> Path:
    """Two folders that number their pictures alike; one picture of the second is none."""
    pictures = work.pictures(4)
    for folder, numbers in (("day", (0, 1)), ("night", (2, 3))):
        (root / folder).mkdir(parents=True)
        for index, number in enumerate(numbers):
            (root / folder / f"{index}.png").write_bytes(pictures[f"{number:03}.png"])
            (root / folder / f"{index}.txt").write_text(f"{folder} {index}")
    (root / "night" / "0.png").write_bytes(b"no picture")
    return root


def test_a_dataset_takes_folders_and_many_of_its_pictures_are_changed_at_once(
    page: Page, tmp_path: Path
) -> None:
    _sign_up(page, "fanny")
    page.goto("/datasets?new=1")
    page.fill("#dataset-name", "Two folders")
    page.get_by_role("button", name="Create and add pictures").click()
    expect(page).to_have_url(re.compile(r"/datasets/\d+"))
    page.set_input_files("#folder", _folders(tmp_path / "zorps"))
    pictures = page.locator("#pictures > li")
    expect(pictures).to_have_count(3)
    captions = page.locator("#pictures textarea")
    assert {area.input_value() for area in captions.all()} == {"day 0", "day 1", "night 1"}
    # Only the one that is no picture is refused, and its caption, which belongs to nothing.
    refused = page.locator("#uploads li:has(.problem) .clip")
    expect(refused).to_have_count(2)
    assert set(refused.all_inner_texts()) == {"zorps/night/0.png", "zorps/night/0.txt"}

    bar = page.locator("#selection")
    expect(bar).to_be_hidden()
    pictures.first.locator(".pick").check()
    expect(bar).to_contain_text("1 picture selected")
    pictures.last.locator(".pick").click(modifiers=["Shift"])
    expect(bar).to_contain_text("3 pictures selected")
    pictures.last.locator(".pick").uncheck()
    bar.get_by_label("Repeats").fill("7")
    bar.get_by_role("button", name="Set").click()
    expect(page.get_by_text("Repeats set for 2 pictures")).to_be_visible()
    page.reload()
    repeats = page.locator("[data-repeats]")
    assert [field.input_value() for field in repeats.all()] == ["7", "7", "1"]

    pictures.first.locator(".pick").check()
    bar.get_by_role("button", name="Select all shown").click()
    pictures.first.locator(".pick").uncheck()
    bar.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(pictures).to_have_count(1)
    expect(page.locator("#counts")).to_contain_text("1 picture")


PAGES = (
    "/",
    "/datasets",
    "/training",
    "/training/new",
    "/models",
    "/text-to-image",
    "/images",
    "/queue",
    "/account",
)
# Words that English sentences have and French ones do not.
ENGLISH = re.compile(
    r"\b(the|your|you|and|with|this|that|are|from|please|delete|search|upload|settings|queue|"
    r"choose|pictures?|datasets?|train(ing)?s?|sign|password)\b",
    re.IGNORECASE,
)


def test_french_pages_hold_no_english_sentence(chromium: Browser, site: Site) -> None:
    context = chromium.new_context(base_url=site.url, locale="fr-FR")
    page = context.new_page()
    try:
        _sign_up(page, "elise")
        for path in ("/accounts/logout/", *PAGES):
            page.goto(path)
            assert page.locator("html").get_attribute("lang") == "fr", path
            page.wait_for_timeout(0)
            text = page.locator("body").inner_text()
            found = ENGLISH.findall(text)
            lines = [line for line in text.splitlines() if ENGLISH.search(line)]
            assert not found, (path, lines)
    finally:
        context.close()

"""Every way to generate, each control once, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Page, expect

from models_app.inspection import sha256_of
from tests.e2e.site import Site, poll
from tests.e2e.test_browser import _sign_up
from tests.generation_app.engine.conftest import make_lora
from tests.tiny import make_tiny_sd, make_tiny_svd

ROOT = Path(__file__).resolve().parents[2]
PAINTED_MS = 120_000
A1111 = (
    "a small green circle <lora:mode-ink:0.5>\nNegative prompt: blurry\n"
    "Steps: 7, Sampler: Euler a, CFG scale: 4.5, Seed: 42, Size: 64x64, Model: starter-64"
)


@pytest.fixture(scope="module")
def loras(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A LoRA and a DreamBooth kept as one, which everyone may use on the starter."""
    folder = tmp_path_factory.mktemp("loras")
    base = ROOT / "models_app" / "starter" / "weights"
    for seed, (name, kind) in enumerate((("mode-ink", "lora"), ("mode-oil", "dreambooth"))):
        path = make_lora(base, folder / f"{name}.safetensors", seed=seed)
        site.manage(
            "shell",
            "-c",
            "from pathlib import Path\n"
            "from models_app.models import DiffusionModel as M\n"
            "from studio_project import storage\n"
            f"size = storage.save('models/{name}.safetensors', Path({str(path)!r}))\n"
            "base = M.objects.get(type='base_model', category='image', availability='ready')\n"
            f"M.objects.register(name={name!r}, title={name!r}, type={kind!r}, base_model=base, "
            f"visibility='shared', path='models/{name}.safetensors', size_bytes=size, "
            f"sha256={sha256_of(path)!r})",
        )
    yield
    site.manage(
        "shell",
        "-c",
        "from models_app.models import DiffusionModel as M\n"
        "M.objects.filter(name__startswith='mode-').delete()",
    )


@pytest.fixture
def mover(site: Site, tmp_path: Path) -> Iterator[None]:
    """A video model, added as an administrator adds one."""
    site.manage("add_model", str(make_tiny_svd(tmp_path / "svd")), "--name", "tiny-mover")
    yield
    site.manage(
        "shell",
        "-c",
        "from models_app.models import DiffusionModel as M\n"
        "M.objects.filter(name='tiny-mover').update(is_active=False)",
    )


@pytest.fixture
def painter(site: Site, tmp_path: Path) -> Iterator[None]:
    """A base for inpainting, added as an administrator adds one."""
    folder = make_tiny_sd(tmp_path / "nine", in_channels=9)
    site.manage("add_model", str(folder), "--name", "tiny-painter", "--title", "Tiny painter")
    yield
    site.manage(
        "shell",
        "-c",
        "from models_app.models import DiffusionModel as M\n"
        "M.objects.filter(name='tiny-painter').delete()",
    )


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "start.png"
    image = Image.new("RGB", (64, 64), "teal")
    ImageDraw.Draw(image).ellipse((14, 14, 50, 50), fill="orange")
    image.save(path)
    return path


@pytest.fixture
def generate(page: Page) -> Page:
    """The generate page with the starter chosen, few steps and a fixed seed."""
    page.goto("/text-to-image")
    expect(page.locator("#model-input")).not_to_have_value("")
    page.click("#model-input")
    page.fill("#model-input", "Starter")
    page.get_by_role("option", name=re.compile("Starter")).click()
    for fold in page.locator("details.fold").all():
        fold.locator("summary").click()
    page.fill("[name=num_inference_steps]", "4")
    page.fill("[name=seed]", "5")
    page.fill("#prompt", "a large red circle on a blue background")
    return page


@pytest.fixture
def page(page: Page) -> Page:
    """A signed-in browser session."""
    _sign_up(page, f"mode-{id(page):x}")
    return page


def _drop(page: Page, path: Path) -> None:
    """Drop a file onto the page, as a hand would."""
    content = list(path.read_bytes())
    transfer = page.evaluate_handle(
        "bytes => { const data = new DataTransfer();"
        " data.items.add(new File([new Uint8Array(bytes)], 'start.png', {type: 'image/png'}));"
        " return data; }",
        content,
    )
    for kind in ("dragenter", "dragover", "drop"):
        page.dispatch_event("#workbench", kind, {"dataTransfer": transfer})
    expect(page.locator("#source-image")).to_be_visible()


def _paint(page: Page, jobs: int) -> None:
    """Press Generate and wait for the newest job's first picture."""
    page.click("#generate")
    expect(page.locator("#sitting > li")).to_have_count(jobs)
    newest = page.locator("#sitting > li").first
    expect(newest.locator("img").first).to_be_visible(timeout=PAINTED_MS)
    expect(newest.locator(".chip")).to_have_text("Finished")


def _slide(page: Page, selector: str, value: str) -> None:
    page.locator(selector).fill(value)


def test_a_dropped_picture_is_painted_over_and_a_part_of_it_anew(
    painter: None, generate: Page, picture: Path
) -> None:
    page = generate
    page.locator("[data-mode=image-to-image]").click()
    page.click("#generate")
    expect(page.get_by_text("Choose the picture to start from.")).to_be_visible()
    page.locator("[data-mode=text-to-image]").click()
    _drop(page, picture)
    expect(page.get_by_text("Choose the picture to start from.")).to_have_count(0)
    expect(page.locator("[data-mode=image-to-image]")).to_have_attribute("aria-pressed", "true")
    _slide(page, "[name=strength]", "0.5")
    expect(page.locator("output[data-of=strength]")).to_have_text("0.50")
    _paint(page, 1)
    expect(page.locator("#parameters-facts")).to_contain_text("0.50")
    expect(page.locator("#parameters-facts")).to_contain_text("64 × 64")
    expect(page.locator("#expected")).to_have_text(re.compile(r"about \d"))

    page.locator("[data-mode=inpaint]").click()
    # It needs no mask, and depends on which tests ran.
    expect(page.locator("#expected")).to_have_text(re.compile(r"about \d|not known yet"))
    page.click("#generate")
    unpainted = page.get_by_text("Paint over the part that shall be painted anew.")
    expect(unpainted).to_be_visible()
    _slide(page, "#brush", "30")
    box = page.locator("#mask").bounding_box()
    assert box is not None
    for row in (0.3, 0.6):
        page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + row * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + row * box["height"], steps=4)
        page.mouse.up()
    painted = (
        "() => document.getElementById('mask').getContext('2d')"
        ".getImageData(0, 0, 64, 64).data.filter((v, i) => i % 4 === 3 && v > 0).length"
    )
    both = page.evaluate(painted)
    expect(unpainted).to_have_count(0)
    page.click("#mask-undo")
    assert 0 < page.evaluate(painted) < both
    page.click("#source-larger")
    expect(page.locator("#source-done")).to_be_visible()
    page.click("#source-done")
    page.click("#model-input")
    page.get_by_role("option", name=re.compile("Tiny painter")).click()
    _paint(page, 2)
    page.click("#mask-clear")
    assert page.evaluate(painted) == 0

    # Reuse all brings the mode, the picture and the mask back.
    page.locator("[data-mode=text-to-image]").click()
    # What paints parts only is not offered here: the model that was chosen before it is back.
    expect(page.locator("#model-input")).to_have_value(re.compile("Starter"))
    page.click("#model-input")
    expect(page.get_by_role("option", name=re.compile("Starter"))).to_be_visible()
    expect(page.get_by_role("option", name=re.compile("Tiny painter"))).to_have_count(0)
    page.click("#reuse")
    expect(page.locator("[data-mode=inpaint]")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#model-input")).to_have_value("Tiny painter")
    poll(lambda: page.evaluate(painted) > 0, seconds=10, what="the mask to come back")


def test_a_picture_becomes_a_clip_that_plays(mover: None, generate: Page, picture: Path) -> None:
    page = generate
    starter = page.locator("input[type=hidden][name=model]").first.input_value()
    page.locator("[data-mode=image-to-video]").click()
    expect(page.locator("#video-model-input")).not_to_have_value("")
    page.set_input_files("#source-file", str(picture))
    expect(page.locator("#source-image")).to_be_visible()
    for name, value in (
        ("width", "128"), ("height", "128"), ("num_inference_steps", "2"), ("num_frames", "4"),
        ("fps", "4"),
    ):  # fmt: skip
        page.fill(f"[name={name}]", value)
    _slide(page, "[name=motion_bucket_id]", "90")
    _paint(page, 1)
    video = page.locator("#stage video")
    expect(video).to_be_visible()
    poll(lambda: video.evaluate("v => v.currentTime") > 0.2, seconds=10, what="the clip to play")
    assert video.evaluate("v => [v.videoWidth, v.videoHeight, v.duration]") == [128, 128, 1]
    expect(page.locator("#parameters-facts")).to_contain_text("4 at 4 a second")
    expect(page.locator("#expected")).to_have_text(re.compile(r"about \d"))
    page.goto("/images")
    page.locator(".tile").first.click()
    expect(page.locator("dialog video")).to_be_visible()

    # The model that the address names paints no clips.
    page.goto(f"/text-to-image?mode=image-to-video&model={starter}")
    expect(page.locator("#video-model-input")).to_have_value(re.compile("tiny-mover|svd"))


@pytest.mark.usefixtures("loras")
def test_two_loras_a_hires_pass_and_a_pasted_text(generate: Page) -> None:
    page = generate
    for index, (name, weight) in enumerate((("mode-ink", "0.6"), ("mode-oil", "-0.25"))):
        page.click("#add-lora")
        row = page.locator("#loras > li").nth(index)
        picker = row.locator("input[role=combobox]")
        picker.click()
        picker.fill(name)
        page.get_by_role("option", name=re.compile(name)).click()
        row.locator("input[type=range]").fill(weight)
        expect(row.locator("output")).to_have_text(re.compile(weight.lstrip("-")))
    page.check("#hires")
    _slide(page, "[name=hires_scale]", "1.5")
    page.select_option("[name=output_format]", "webp")
    alone = page.get_by_label("Paint it by itself")
    alone.check()
    expect(page.locator("[data-sum=advanced]")).to_have_text("seed 5 · 2 LoRA · by itself")
    _paint(page, 1)
    facts = page.locator("#parameters-facts")
    expect(facts).to_contain_text("mode-ink × 0.6, mode-oil × -0.25")
    expect(facts).to_contain_text("96 × 96")

    page.locator("#prompt").evaluate(
        "(field, text) => { const data = new DataTransfer(); data.setData('text/plain', text);"
        " field.dispatchEvent(new ClipboardEvent('paste',"
        " {clipboardData: data, bubbles: true, cancelable: true})); }",
        A1111,
    )
    expect(page.locator("#prompt")).to_have_value("a small green circle")
    expect(page.locator("[name=seed]")).to_have_value("42")
    expect(page.locator("[name=scheduler]")).to_have_value("euler_a")
    expect(page.locator("#loras > li")).to_have_count(1)
    expect(page.locator("#hires")).not_to_be_checked()
    alone.uncheck()

    page.click("#reuse")
    expect(page.locator("#prompt")).to_have_value("a large red circle on a blue background")
    expect(page.locator("#loras > li")).to_have_count(2)
    expect(page.locator("#hires")).to_be_checked()
    expect(alone).to_be_checked()
    page.fill("#prompt", "")
    page.fill("[name=seed]", "")
    page.click("#reuse-prompt")
    page.click("#reuse-seed")
    expect(page.locator("#prompt")).to_have_value("a large red circle on a blue background")
    expect(page.locator("[name=seed]")).to_have_value("5")

    # A LoRA that is the model itself has a weight too.
    page.click("#reset")
    expect(page.locator("#model-weight")).to_be_hidden()
    page.click("#model-input")
    page.fill("#model-input", "mode-ink")
    page.get_by_role("option", name=re.compile("mode-ink")).click()
    _slide(page, "#model-weight", "0.4")
    _paint(page, 2)
    expect(facts).to_contain_text("mode-ink × 0.4")
    page.click("#reset")
    expect(page.locator("#model-weight")).to_have_value("1")
    page.click("#reuse")
    expect(page.locator("#model-weight")).to_have_value("0.4")
    expect(page.locator("#loras > li")).to_have_count(0)


def test_a_picture_is_made_again_and_compared_and_a_job_is_cancelled(generate: Page) -> None:
    page = generate
    page.locator("[data-mode=image-to-video]").click()
    page.click("#generate")
    expect(page.get_by_text("Choose a model.")).to_be_visible()
    page.locator("[data-mode=text-to-image]").click()
    shape, sides = page.locator("#shape"), page.locator("[name=width], [name=height]")
    expect(shape).to_have_value("1")
    page.fill("[name=width]", "72")
    expect(shape).to_have_value("")
    shape.select_option("0.75")
    assert [side.input_value() for side in sides.all()] == ["64", "88"]
    shape.select_option("1")
    assert [side.input_value() for side in sides.all()] == ["64", "64"]
    _paint(page, 1)
    page.click("#make-again")
    expect(page.locator("#sitting > li")).to_have_count(2)
    expect(page.locator("#remade-words")).to_have_text(
        "Made again: every value of every pixel is the same.", timeout=PAINTED_MS
    )
    expect(page.locator("#remade-picture img")).to_have_count(2)

    page.fill("[name=num_inference_steps]", "150")
    page.fill("[name=num_images]", "8")
    page.click("#generate")
    expect(page.locator("#sitting > li")).to_have_count(3)
    newest = page.locator("#sitting > li").first
    newest.get_by_role("button", name="Cancel").click()
    expect(newest.locator(".chip")).to_have_text("Canceled", timeout=30_000)

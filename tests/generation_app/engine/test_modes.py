"""Image to image, inpainting and the hires pass: each equals what plain diffusers makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)
from PIL import Image, ImageDraw

from generation_app.engine.errors import EngineError
from generation_app.engine.resident import Engine
from generation_app.engine.schedulers import build_scheduler
from generation_app.engine.vocabulary import SCHEDULERS
from models_app.loading import load_pipeline
from tests.generation_app.engine.conftest import Recorder
from tests.tiny import make_tiny_sd, make_tiny_sdxl

Order = Callable[..., dict[str, Any]]

# torch's arrays meet numpy 2 inside some noise schedulers of diffusers.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SIZE = (72, 64)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def engine() -> Engine:
    """One engine for all, as on a worker: what one test leaves behind must not reach the next."""
    return Engine()


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    folder = tmp_path_factory.mktemp("bases")
    sd1 = make_tiny_sd(folder / "sd1")
    yield {
        "sd1": sd1,
        "sd2": make_tiny_sd(folder / "sd2", prediction_type="v_prediction", seed=1),
        "sdxl": make_tiny_sdxl(folder / "sdxl"),
        "nine": make_tiny_sd(folder / "nine", in_channels=9, seed=2),
        "nine_xl": make_tiny_sdxl(folder / "nine_xl", in_channels=9, seed=3),
    }


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inputs") / "picture.png"
    image = Image.new("RGB", SIZE, "teal")
    ImageDraw.Draw(image).ellipse((10, 10, 50, 50), fill="orange")
    image.save(path)
    return path


@pytest.fixture(scope="module")
def mask(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inputs") / "mask.png"
    image = Image.new("L", SIZE, 0)
    ImageDraw.Draw(image).rectangle((20, 12, 52, 44), fill=255)
    image.save(path)
    return path


@pytest.fixture
def ask(order: Order, bases: dict[str, Path]) -> Order:
    """Make a request to one of the bases."""

    def make(base: str, **changes: Any) -> dict[str, Any]:
        architecture = {"nine": "sd1", "nine_xl": "sdxl"}.get(base, base)
        return order(
            base_folder=str(bases[base]),
            base_sha256=base,
            architecture=architecture,
            width=SIZE[0],
            height=SIZE[1],
            num_inference_steps=4,
            **changes,
        )

    return make


def paint(engine: Engine, message: dict[str, Any]) -> tuple[list[np.ndarray], Recorder]:
    line = Recorder()
    engine.run(line, message)
    return [np.array(Image.open(image["path"])) for image in line.of("image")], line


def plain(kind: type, message: dict[str, Any], seed: int = 11, **given: Any) -> Image.Image:
    """What one of diffusers' own pipelines makes of a request."""
    whole = load_pipeline(Path(message["base_folder"]), message["architecture"])
    extra = {} if "XL" in kind.__name__ else {"requires_safety_checker": False}
    parts = {name: part for name, part in whole.components.items() if name != "image_encoder"}
    pipe = kind(**parts, **extra)
    pipe.set_progress_bar_config(disable=True)
    for lora in message["loras"]:
        pipe.load_lora_weights(lora["path"], adapter_name="worn")
        pipe.set_adapters("worn", lora["weight"])
    steps = given.pop("num_inference_steps", message["num_inference_steps"])
    pipe.scheduler = build_scheduler(message["scheduler"], whole.scheduler.config, steps)
    made = pipe(
        message["prompt"],
        negative_prompt=message["negative_prompt"] or None,
        num_inference_steps=steps,
        guidance_scale=message["guidance_scale"],
        generator=torch.Generator("cpu").manual_seed(seed),
        **given,
    )
    image: Image.Image = made.images[0]
    return image


def img2img_of(base: str) -> type:
    return StableDiffusionXLImg2ImgPipeline if base == "sdxl" else StableDiffusionImg2ImgPipeline


def inpaint_of(base: str) -> type:
    return StableDiffusionXLInpaintPipeline if "xl" in base else StableDiffusionInpaintPipeline


# --- image to image -------------------------------------------------------------------------------
@pytest.mark.parametrize("base", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_image_to_image_equals_plain_diffusers(
    engine: Engine, ask: Order, picture: Path, base: str, strength: float
) -> None:
    message = ask(base, mode="image-to-image", image=str(picture), strength=strength)
    [made], line = paint(engine, message)
    image = Image.open(picture)
    assert np.array_equal(made, plain(img2img_of(base), message, image=image, strength=strength))
    assert line.of("step")[-1] == {
        "type": "step", "step": int(4 * strength), "total_steps": int(4 * strength),
        "image_index": 0,
    }  # fmt: skip


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_each_scheduler_starts_from_a_picture_as_plain_diffusers_does(
    engine: Engine, ask: Order, picture: Path, scheduler: str
) -> None:
    message = ask(
        "sd1", mode="image-to-image", image=str(picture), strength=0.6, scheduler=scheduler
    )
    [made], line = paint(engine, message)
    image = Image.open(picture)
    kind = StableDiffusionImg2ImgPipeline
    assert np.array_equal(made, plain(kind, message, image=image, strength=0.6))
    last = line.of("step")[-1]
    assert last["step"] == last["total_steps"]


def test_each_image_of_a_request_is_made_again_alone(
    engine: Engine, ask: Order, picture: Path, mask: Path
) -> None:
    for mode in ("image-to-image", "inpaint"):
        given = {"mode": mode, "image": str(picture), "mask_image": str(mask)}
        together, _ = paint(engine, ask("sd1", seeds=[5, 6, 7], scheduler="euler_a", **given))
        [alone], _ = paint(engine, ask("sd1", seeds=[6], scheduler="euler_a", **given))
        assert np.array_equal(together[1], alone)
        assert not np.array_equal(together[0], alone)


def test_a_picture_of_another_shape_is_cut_around_its_middle(
    engine: Engine, ask: Order, tmp_path: Path
) -> None:
    wide = Image.new("RGB", (300, 64), "red")
    wide.paste("blue", (114, 0, 186, 64))
    wide.save(tmp_path / "wide.jpg", quality=100, subsampling=0)
    wide.crop((114, 0, 186, 64)).save(tmp_path / "middle.png")
    made = [
        paint(engine, ask("sd1", mode="image-to-image", image=str(tmp_path / name)))[0][0]
        for name in ("wide.jpg", "middle.png")
    ]
    assert np.abs(made[0].astype(int) - made[1]).mean() < 3


# --- inpainting -----------------------------------------------------------------------------------
@pytest.mark.parametrize("base", ["sd1", "sd2", "sdxl", "nine", "nine_xl"])
@pytest.mark.parametrize(("strength", "scheduler"), [(0.6, "euler_a"), (1.0, "ddim")])
def test_inpainting_equals_plain_diffusers(
    engine: Engine, ask: Order, picture: Path, mask: Path, base: str, strength: float,
    scheduler: str,
) -> None:  # fmt: skip
    files = {"image": str(picture), "mask_image": str(mask)}
    message = ask(
        base, mode="inpaint", strength=strength, mask_blur=4, scheduler=scheduler, **files
    )
    [made], _ = paint(engine, message)
    kind, image = inpaint_of(base), Image.open(picture)
    processor = load_pipeline(Path(message["base_folder"]), message["architecture"]).image_processor
    soft = processor.blur(Image.open(mask), 4)
    sizes = {"width": SIZE[0], "height": SIZE[1]}
    raw = plain(kind, message, image=image, mask_image=soft, strength=strength, **sizes)
    # diffusers' own recipe for what must stay: lay the picture over it.
    wanted = np.array(processor.apply_overlay(soft, image, raw)).astype(int)
    assert np.array_equal(made, wanted)
    before = np.array(image)
    assert np.array_equal(made[60:], before[60:])
    assert not np.array_equal(made[20:40, 26:46], before[20:40, 26:46])


@pytest.mark.parametrize("base", ["nine", "nine_xl"])
def test_a_model_for_inpainting_paints_nothing_else(
    engine: Engine, ask: Order, picture: Path, mask: Path, base: str
) -> None:
    for mode in ("text-to-image", "image-to-image"):
        with pytest.raises(EngineError) as caught:
            paint(engine, ask(base, mode=mode, image=str(picture)))
        assert caught.value.params == {"field": "model", "reason": "needs_mask"}
    files = {"image": str(picture), "mask_image": str(mask)}
    assert paint(engine, ask(base, mode="inpaint", **files))[0]


def test_a_lora_of_the_family_is_worn_by_a_model_for_inpainting(
    engine: Engine, ask: Order, picture: Path, mask: Path, lora: Path
) -> None:
    files = {"image": str(picture), "mask_image": str(mask)}
    given = {"mode": "inpaint", "strength": 0.6, "mask_blur": 0, **files}
    message = ask("nine", loras=[(lora, 0.8)], **given)
    [made], _ = paint(engine, message)
    image, hole = Image.open(picture), Image.open(mask)
    sizes = {"width": SIZE[0], "height": SIZE[1]}
    raw = plain(
        StableDiffusionInpaintPipeline, message, image=image, mask_image=hole, strength=0.6, **sizes
    )
    inside = np.array(hole) > 0
    assert np.array_equal(made[inside], np.array(raw)[inside])
    [bare], _ = paint(engine, ask("nine", **given))
    assert not np.array_equal(made, bare)


def test_pictures_of_one_request_share_the_unet_of_a_model_for_inpainting(
    engine: Engine, ask: Order, picture: Path, mask: Path
) -> None:
    files = {"image": str(picture), "mask_image": str(mask)}
    given = {"mode": "inpaint", "strength": 0.6, "seeds": [5, 6], **files}
    apart, _ = paint(engine, ask("nine", **given))
    beside, line = paint(engine, ask("nine", together=2, preview=True, **given))
    assert np.abs(np.int16(apart) - np.int16(beside)).max() <= 2
    assert line.of("preview")


def test_a_mask_of_another_size_is_refused(
    engine: Engine, ask: Order, picture: Path, tmp_path: Path
) -> None:
    Image.new("L", (64, 64), 255).save(tmp_path / "mask.png")
    files = {"image": str(picture), "mask_image": str(tmp_path / "mask.png")}
    with pytest.raises(EngineError) as caught:
        paint(engine, ask("sd1", mode="inpaint", **files))
    assert caught.value.params == {"field": "mask_image", "reason": "mask_size"}


# --- the hires pass -------------------------------------------------------------------------------
@pytest.mark.parametrize("base", ["sd1", "sd2", "sdxl"])
def test_refining_pixels_is_image_to_image_of_the_enlarged_picture(
    engine: Engine, ask: Order, base: str
) -> None:
    hires = {"hires_scale": 1.5, "hires_strength": 0.5, "hires_steps": 6}
    message = ask(base, **hires)
    [made], line = paint(engine, message)
    assert made.shape == (96, 112, 3)  # 108 is brought to a multiple of 8
    [small], _ = paint(engine, ask(base))
    large = Image.fromarray(small).resize((112, 96), Image.Resampling.LANCZOS)
    wanted = plain(img2img_of(base), message, image=large, strength=0.5, num_inference_steps=6)
    assert np.array_equal(made, wanted)
    last = line.of("step")[-1]
    assert (last["step"], last["total_steps"]) == (7, 7)
    assert line.of("image")[0]["width"] == 112


@pytest.mark.parametrize("base", ["sd1", "sdxl"])
def test_refining_latents_equals_plain_diffusers(engine: Engine, ask: Order, base: str) -> None:
    message = ask(base, hires_scale=2, hires_strength=0.5, hires_upscaler="latent")
    [made], _ = paint(engine, message)
    pipe = load_pipeline(Path(message["base_folder"]), message["architecture"])
    pipe.scheduler = build_scheduler("ddim", pipe.scheduler.config, 4)
    latents = pipe(
        message["prompt"], width=SIZE[0], height=SIZE[1], num_inference_steps=4,
        guidance_scale=5.0, generator=torch.Generator("cpu").manual_seed(11), output_type="latent",
    ).images  # fmt: skip
    larger = torch.nn.functional.interpolate(latents, size=(16, 18), mode="bilinear")
    wanted = plain(img2img_of(base), message, image=larger, strength=0.5)
    assert np.array_equal(made, wanted)


# --- what is refused ------------------------------------------------------------------------------
def test_modes_refuse_what_they_cannot_use(engine: Engine, ask: Order, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    bad = [
        ({"mode": "image-to-image"}, "image"),
        ({"mode": "image-to-image", "image": "/nowhere.png"}, "image"),
        ({"mode": "image-to-image", "image": str(tmp_path / "text.png")}, "image"),
        ({"mode": "image-to-image", "image": "x", "strength": 2}, "strength"),
        ({"mode": "image-to-image", "image": "x", "strength": 0.1}, "strength"),
        ({"mode": "image-to-image", "image": "x", "strength": float("nan")}, "strength"),
        ({"hires_scale": 9}, "hires_scale"),
        ({"hires_scale": 2, "hires_strength": 0.1}, "hires_strength"),
        ({"mode": "image-to-video", "image": "x"}, "model"),
    ]
    for changes, field in bad:
        with pytest.raises(EngineError) as caught:
            paint(engine, ask("sd1", **changes))
        assert (caught.value.code, caught.value.params["field"]) == ("invalid_request", field)
    assert paint(engine, ask("sd1"))[0]


def test_a_stop_in_the_second_pass_ends_the_request(engine: Engine, ask: Order) -> None:
    line = Recorder(lambda sent: "cancel" if sent and sent[-1].get("step") == 5 else None)
    engine.run(line, ask("sd1", hires_scale=2, hires_strength=1.0))
    assert line.messages[-1] == {"type": "stopped", "how": "cancel"}
    assert len(line.of("step")) == 5


def test_each_image_may_have_a_prompt_of_its_own(engine: Engine, ask: Order) -> None:
    together, line = paint(engine, ask("sd1", seeds=[3, 4], prompts=["a cat", "a dog"]))
    [alone], _ = paint(engine, ask("sd1", seeds=[4], prompt="a dog"))
    assert np.array_equal(together[1], alone)
    assert [image["parameters"]["prompt"] for image in line.of("image")] == ["a cat", "a dog"]
    with pytest.raises(EngineError, match="prompts"):
        paint(engine, ask("sd1", seeds=[3, 4], prompts=["a cat"]))

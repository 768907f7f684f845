"""The engine's pictures: equal to plain diffusers', watched, stoppable, repeatable."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from generation_app.engine.errors import EngineError
from generation_app.engine.resident import Engine
from generation_app.engine.schedulers import build_scheduler
from generation_app.engine.vocabulary import SCHEDULERS
from models_app.loading import load_pipeline
from tests.generation_app.engine.conftest import Recorder, make_lora
from tests.tiny import make_tiny_sd, make_tiny_sdxl

Order = Callable[..., dict[str, Any]]

# torch's arrays meet numpy 2 inside some noise schedulers of diffusers.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def pixels(path: Path | str) -> np.ndarray:
    return np.array(Image.open(path))


def paint(engine: Engine, message: dict[str, Any]) -> tuple[list[np.ndarray], Recorder]:
    line = Recorder()
    engine.run(line, message)
    return [pixels(image["path"]) for image in line.of("image")], line


def plain(base: Path, message: dict[str, Any], seed: int, lora: Path | None = None) -> np.ndarray:
    """What plain diffusers makes of the same request."""
    pipe = load_pipeline(base, message["architecture"])
    steps = message["num_inference_steps"]
    pipe.scheduler = build_scheduler(message["scheduler"], pipe.scheduler.config, steps)
    if lora is not None:
        pipe.load_lora_weights(lora.parent, weight_name=lora.name)
    image = pipe(
        message["prompt"],
        negative_prompt=message["negative_prompt"] or None,
        width=message["width"],
        height=message["height"],
        num_inference_steps=steps,
        guidance_scale=message["guidance_scale"],
        generator=torch.Generator("cpu").manual_seed(seed),
    ).images[0]
    return np.array(image)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_each_scheduler_paints_what_plain_diffusers_paints(
    base: Path, order: Order, scheduler: str
) -> None:
    message = order(scheduler=scheduler, num_inference_steps=4, negative_prompt="dog 🐶")
    [made], _ = paint(Engine(), message)
    assert np.array_equal(made, plain(base, message, 11))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 2])
def test_each_scheduler_runs_with_very_few_steps(order: Order, scheduler: str, steps: int) -> None:
    [made], _ = paint(Engine(), order(scheduler=scheduler, num_inference_steps=steps))
    assert made.std() > 0


def test_lcm_takes_more_steps_than_its_own_schedule_has(order: Order) -> None:
    _, line = paint(Engine(), order(scheduler="lcm", num_inference_steps=60))
    assert line.of("step")[-1]["total_steps"] == 60


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 7.5])
def test_guidance_on_and_off_equal_plain_diffusers(
    base: Path, order: Order, guidance_scale: float
) -> None:
    message = order(guidance_scale=guidance_scale, width=72, height=128)
    [made], _ = paint(Engine(), message)
    assert made.shape == (128, 72, 3)
    assert np.array_equal(made, plain(base, message, 11))


def test_a_v_prediction_model_equals_plain_diffusers(tmp_path: Path, order: Order) -> None:
    base = make_tiny_sd(tmp_path / "v", prediction_type="v_prediction")
    message = order(scheduler="euler", base_folder=str(base), base_sha256="v")
    [made], _ = paint(Engine(), message)
    assert np.array_equal(made, plain(base, message, 11))


def test_each_image_of_a_request_is_made_again_alone(base: Path, order: Order) -> None:
    engine = Engine()
    together, _ = paint(engine, order(seeds=[11, 12, 13], scheduler="euler_a"))
    alone, _ = paint(engine, order(seeds=[12], scheduler="euler_a"))
    assert np.array_equal(together[1], alone[0])
    assert np.array_equal(alone[0], plain(base, order(scheduler="euler_a"), 12))
    assert not np.array_equal(together[0], together[1])


def test_a_lora_with_alpha_unlike_its_rank_equals_plain_diffusers(
    base: Path, lora: Path, order: Order
) -> None:
    engine = Engine()
    [without], _ = paint(engine, order())
    message = order(loras=[(lora, 1.0)])
    [made], _ = paint(engine, message)
    assert np.array_equal(made, plain(base, message, 11, lora))
    assert not np.array_equal(made, without)
    [again], _ = paint(engine, order())
    assert np.array_equal(again, without)
    assert engine.pipelines.loads == 1


def test_a_lora_in_the_text_encoder_equals_plain_diffusers(
    base: Path, text_lora: Path, lora: Path, order: Order
) -> None:
    engine = Engine()
    message = order(loras=[(text_lora, 1.0)])
    paint(engine, order())
    [made], _ = paint(engine, message)
    assert np.array_equal(made, plain(base, message, 11, text_lora))
    # The next request must see neither the adapter nor embeddings made with it.
    [other], _ = paint(engine, order(loras=[(lora, 1.0)]))
    assert np.array_equal(other, plain(base, message, 11, lora))


def test_clip_skip_changes_the_picture_and_too_much_is_refused(order: Order) -> None:
    engine = Engine()
    [whole], _ = paint(engine, order())
    [skipped], _ = paint(engine, order(clip_skip=1))
    assert not np.array_equal(whole, skipped)
    with pytest.raises(EngineError) as caught:
        paint(engine, order(clip_skip=3))
    assert caught.value.params == {"field": "clip_skip", "maximum": 2}


def test_the_unet_runs_once_per_timestep(order: Order) -> None:
    engine = Engine()
    paint(engine, order())
    pipe = engine.pipelines.find("b" * 64, "cpu").pipe  # type: ignore[union-attr]
    calls: list[int] = []
    pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    for scheduler, expected in (("ddim", 5), ("pndm", 6), ("heun", 9)):
        calls.clear()
        _, line = paint(engine, order(scheduler=scheduler, num_inference_steps=5))
        assert len(calls) == expected == line.of("done")[0]["metrics"]["unet_calls"]
        assert len(line.of("step")) == expected


def test_progress_counts_over_all_images(order: Order) -> None:
    _, line = paint(Engine(), order(seeds=[1, 2]))
    steps = [(m["step"], m["total_steps"], m["image_index"]) for m in line.of("step")]
    assert steps == [(1, 6, 0), (2, 6, 0), (3, 6, 0), (4, 6, 1), (5, 6, 1), (6, 6, 1)]
    phases = [m["phase"] for m in line.of("phase")]
    assert phases == [
        "loading_model",
        "encoding",
        *["denoising", "decoding", "saving"] * 2,
    ]


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
@pytest.mark.parametrize("negative_prompt", ["", "a dog"])
def test_sdxl_equals_plain_diffusers(tmp_path: Path, order: Order, negative_prompt: str) -> None:
    base = make_tiny_sdxl(tmp_path / "xl")
    lora = make_lora(base, tmp_path / "xl.safetensors", kind="sdxl")
    message = order(
        base_folder=str(base),
        base_sha256="xl",
        architecture="sdxl",
        scheduler="euler",
        width=72,
        negative_prompt=negative_prompt,
    )
    engine = Engine()
    [made], _ = paint(engine, message)
    assert np.array_equal(made, plain(base, message, 11))
    with_lora = message | {"loras": order(loras=[(lora, 1.0)])["loras"]}
    [changed], _ = paint(engine, with_lora)
    assert np.array_equal(changed, plain(base, message, 11, lora))
    assert not np.array_equal(changed, made)
    [skipped], line = paint(engine, message | {"clip_skip": 2})
    assert not np.array_equal(skipped, made)
    assert line.of("done")[0]["metrics"]["text_encoder_calls"] == 1
    with pytest.raises(EngineError, match="clip_skip"):
        paint(engine, message | {"clip_skip": 3})


@pytest.mark.parametrize("how", ["cancel", "yield"])
def test_a_stop_ends_the_request_within_one_step(order: Order, how: str) -> None:
    engine = Engine()
    line = Recorder(lambda sent: how if sent and sent[-1].get("step") == 2 else None)
    engine.run(line, order(num_inference_steps=20))
    assert len(line.of("step")) == 2
    assert line.messages[-1] == {"type": "stopped", "how": how}
    made, _ = paint(engine, order())
    assert len(made) == 1


def test_a_stop_before_the_start_does_nothing(order: Order) -> None:
    engine = Engine()
    line = Recorder(lambda _: "cancel")
    engine.run(line, order())
    assert line.messages == [{"type": "stopped", "how": "cancel"}]
    assert engine.pipelines.loads == 0


def test_a_preview_is_a_small_jpeg_and_leaves_the_picture_alone(order: Order) -> None:
    engine = Engine()
    [without], _ = paint(engine, order(num_inference_steps=6))
    [with_preview], line = paint(engine, order(num_inference_steps=6, preview=True))
    assert np.array_equal(without, with_preview)
    data = line.of("preview")[0]["data"]
    assert len(data) <= 40_000
    assert Image.open(io.BytesIO(base64.b64decode(data))).format == "JPEG"


def test_a_picture_that_is_not_numbers_is_an_error_and_the_engine_stays_well(order: Order) -> None:
    engine = Engine()
    [before], _ = paint(engine, order())
    warm = engine.pipelines.find("b" * 64, "cpu")
    assert warm is not None
    bias = warm.pipe.unet.conv_out.bias
    kept = bias.data.clone()
    bias.data.fill_(float("nan"))
    with pytest.raises(EngineError, match="non_finite_image"):
        paint(engine, order())
    bias.data.copy_(kept)
    [after], _ = paint(engine, order())
    assert np.array_equal(before, after)


def test_a_prompt_beyond_all_chunks_is_cut_and_said(order: Order) -> None:
    engine = Engine()
    _, line = paint(engine, order(prompt="x" * 300))
    assert line.of("done")[0]["metrics"]["notes"] == []
    _, line = paint(engine, order(prompt="x" * 1500))
    [note] = line.of("done")[0]["metrics"]["notes"]
    assert note["code"] == "prompt_truncated"
    assert note["params"] == {"field": "prompt", "tokens": 1500, "limit": 1200}


@pytest.mark.parametrize("prompt", ["", "🦊" * 50, "((((", "{a|", "line one\nline two"])
def test_odd_prompts_paint(order: Order, prompt: str) -> None:
    made, _ = paint(Engine(), order(prompt=prompt))
    assert len(made) == 1

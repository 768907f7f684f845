"""Previews: what they show, what they cost."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from generation_app.engine import preview
from generation_app.engine.denoise import Step
from generation_app.engine.resident import Engine
from generation_app.engine.schedulers import build_scheduler
from tests.generation_app.engine.conftest import Recorder

CONFIG = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ["euler", "ddim", "dpmpp_2m", "heun"])
def test_a_perfect_prediction_shows_the_picture(name: str, kind: str) -> None:
    scheduler = build_scheduler(name, CONFIG | {"prediction_type": kind}, 7)
    scheduler.set_timesteps(7)
    picture = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    timestep = scheduler.timesteps[2]
    at = float(timestep)
    alpha = float(np.interp(at, np.arange(1000), scheduler.alphas_cumprod.numpy()))
    model_input = alpha**0.5 * picture + (1 - alpha) ** 0.5 * noise
    v = alpha**0.5 * noise - (1 - alpha) ** 0.5 * picture
    pred = noise if kind == "epsilon" else v
    found = preview.predicted_original(scheduler, Step(2, 7, timestep, model_input, pred))
    assert torch.allclose(found, picture, atol=1e-4)


def test_large_latents_are_shown_by_a_fitted_map(
    order: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine()
    monkeypatch.setattr(preview, "_CHEAP_DECODE", 0)
    line = Recorder()
    engine.run(line, order(num_inference_steps=4, preview=True))
    warm = engine.pipelines.find("b" * 64, "cpu")
    assert warm is not None and warm.projection is not None
    assert warm.projection.shape == (5, 3)
    image = Image.open(io.BytesIO(base64.b64decode(line.of("preview")[0]["data"])))
    assert image.size == (8, 8)


def test_the_fitted_map_finds_the_colours_of_a_linear_vae(
    order: Callable[..., dict[str, Any]],
) -> None:
    """A VAE whose latents are mixed colours is undone to within a few hundredths."""
    engine = Engine()
    engine.run(Recorder(), order())
    warm = engine.pipelines.find("b" * 64, "cpu")
    assert warm is not None
    mix = torch.tensor([[1.0, 0, 0], [0.3, 1, 0], [0, 0.5, 1], [0, 0, 0]])

    class Mean:
        def __init__(self, pictures: torch.Tensor) -> None:
            small = torch.nn.functional.avg_pool2d(pictures, 8)
            self.latents = torch.einsum("lc,nchw->nlhw", mix, small)

        def mode(self) -> torch.Tensor:
            return self.latents

    class Encoded:
        def __init__(self, pictures: torch.Tensor) -> None:
            self.latent_dist = Mean(pictures)

    warm.pipe.vae.encode = Encoded
    projection = preview.fit_projection(warm.pipe)
    colour = torch.tensor([0.9, 0.2, 0.5])
    factor = warm.pipe.vae.config.scaling_factor
    latents = (mix @ (colour * 2 - 1) * factor).view(1, 4, 1, 1)
    shown = preview._project(latents, projection)[0, 0]
    assert torch.allclose(shown, colour, atol=0.05)


def test_previews_are_rare_and_their_cost_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(preview.time, "monotonic", lambda: now[0])
    clock = preview.PreviewClock()
    assert clock.is_due()
    clock.made(0.01)
    assert not clock.is_due()
    now[0] += 0.5
    assert clock.is_due()
    clock.made(2.0)
    now[0] += 19.0
    assert not clock.is_due()


def test_those_who_share_a_clock_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(preview.time, "monotonic", lambda: now[0])
    clock = preview.PreviewClock(sharers=3)
    shown = []
    for tick in range(24):
        now[0] += 0.26
        for whose in "abc" if tick < 9 else "ab":  # the third one ends
            if clock.is_due(whose):
                shown.append(whose)
                clock.made(0.01, whose)
    assert "".join(shown) == "abcababab"  # and no more than one alone would have had


def test_a_preview_fits_into_a_message() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)
    assert len(preview.encode_jpeg(Image.fromarray(noise))) <= preview.MAX_BASE64_CHARACTERS

"""Small pictures of where a denoising is going, cheap enough not to slow it down.

A preview shows the clean picture that the current prediction implies. Small latents go through the
VAE; large ones through a linear map from latents to colours that is fitted once per VAE by least
squares on pictures that it encodes itself. Neither touches the random state of the picture.

Shapes: latents (1, C, h, w); colours (h, w, 3) in 0..1.
Source: x0 from the prediction, Ho et al. 2020 (arXiv 2006.11239) equation 15 and, for v, Salimans &
Ho 2022 (arXiv 2202.00512) appendix D.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Hashable
from typing import Any

import torch
from PIL import Image

from generation_app.engine.denoise import Step, decode
from generation_app.engine.pipelines import WarmPipeline
from generation_app.engine.precision import without_overflow

MIN_INTERVAL_SECONDS = 0.5
# A preview may cost at most this part of the time between two of them.
MAX_SHARE_OF_TIME = 0.1
MAX_SIDE = 256
MAX_BASE64_CHARACTERS = 40_000
# VAE parameters times latent positions up to which decoding is cheap (a 2 M VAE on 16×16).
_CHEAP_DECODE = 1_000_000_000
_FIT_SIDE = 128
_FIT_PICTURES = 6


class PreviewClock:
    """Says when the next preview is due, so that they stay rare and cheap.

    Args:
        sharers: How many requests that are at work together share it; they take turns.
    """

    def __init__(self, sharers: int = 1) -> None:
        self._next = 0.0
        self._sharers = sharers
        self._had_theirs: set[Hashable] = set()

    def is_due(self, whose: Hashable = None) -> bool:
        """Whether a preview may be made now, for one of those who share the clock."""
        # Whoever does not come for a turn within the interval has ended.
        pause = MIN_INTERVAL_SECONDS if whose in self._had_theirs else 0.0
        return time.monotonic() >= self._next + pause

    def made(self, seconds: float, whose: Hashable = None) -> None:
        """Note how long a preview took."""
        if whose in self._had_theirs:
            self._had_theirs.clear()
        self._had_theirs.add(whose)
        if len(self._had_theirs) == self._sharers:
            self._had_theirs.clear()
        self._next = time.monotonic() + max(MIN_INTERVAL_SECONDS, seconds / MAX_SHARE_OF_TIME)


def predicted_original(scheduler: Any, step: Step) -> torch.Tensor:
    """Return the clean latents that a step's prediction implies.

    The UNet's input is variance preserving for every noise scheduler (``scale_model_input`` sees to
    it), so one formula serves them all.
    """
    alphas = scheduler.alphas_cumprod
    position = float(step.timestep)
    low = min(max(int(position), 0), len(alphas) - 1)
    high = min(low + 1, len(alphas) - 1)
    part = position - int(position)
    alpha = float(alphas[low]) * (1 - part) + float(alphas[high]) * part
    signal, noise = alpha**0.5, (1 - alpha) ** 0.5
    kind = scheduler.config.prediction_type
    if kind == "sample":
        return step.model_pred
    if kind == "v_prediction":
        return signal * step.model_input - noise * step.model_pred
    return (step.model_input - noise * step.model_pred) / signal


def render(warm: WarmPipeline, latents: torch.Tensor, *, may_decode: bool = True) -> Image.Image:
    """Paint latents as a small picture.

    Args:
        warm: The pipeline they belong to.
        latents: (1, C, h, w), scaled as the UNet sees them.
        may_decode: Whether the VAE may be used for it where that is cheap.
    """
    parameters = sum(parameter.numel() for parameter in warm.pipe.vae.decoder.parameters())
    positions = latents.shape[-1] * latents.shape[-2]
    if may_decode and parameters * positions <= _CHEAP_DECODE:
        colours = decode(warm.pipe, latents)[0].float() / 2 + 0.5
        colours = colours.permute(1, 2, 0)
    else:
        if warm.projection is None:
            warm.projection = fit_projection(warm.pipe)
        colours = _project(latents, warm.projection)
    pixels = (colours.nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    image = Image.fromarray(pixels)
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BILINEAR)
    return image


def encode_jpeg(image: Image.Image) -> str:
    """Return a picture as base64 JPEG of at most ``MAX_BASE64_CHARACTERS``."""
    text = ""
    for quality in (80, 60, 40, 20):
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=quality)
        text = base64.b64encode(buffer.getvalue()).decode()
        if len(text) <= MAX_BASE64_CHARACTERS:
            break
    return text


def _project(latents: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
    values = latents[0].float().permute(1, 2, 0)
    return values @ projection[:-1] + projection[-1]


def fit_projection(pipe: Any) -> torch.Tensor:
    """Fit the linear map from a VAE's latents to colours.

    Returns:
        (C + 1, 3): a row per channel of the latents and one constant.
    """
    vae = pipe.vae
    with without_overflow(vae):
        pictures = _fit_pictures().to(device=vae.device, dtype=vae.dtype)
        latents = vae.encode(pictures * 2 - 1).latent_dist.mode() * vae.config.scaling_factor
    channels = latents.shape[1]
    colours = torch.nn.functional.adaptive_avg_pool2d(pictures.float(), latents.shape[-2:])
    known = latents.float().permute(0, 2, 3, 1).reshape(-1, channels)
    known = torch.cat([known, known.new_ones(len(known), 1)], dim=1).cpu()
    wanted = colours.permute(0, 2, 3, 1).reshape(-1, 3).cpu()
    # A little ridge keeps channels that say nothing about colour from growing without bound.
    square = known.T @ known + 1e-3 * len(known) * torch.eye(channels + 1)
    return torch.linalg.solve(square, known.T @ wanted).to(latents.device)


def _fit_pictures() -> torch.Tensor:
    """Draw soft coloured clouds and hard coloured fields: (N, 3, side, side) in 0..1."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((_FIT_PICTURES, 3, 8, 8), generator=generator)
    side = (_FIT_SIDE, _FIT_SIDE)
    resize = torch.nn.functional.interpolate
    soft = resize(coarse, size=side, mode="bicubic", align_corners=False)
    hard = resize(coarse.flip(-1), size=side, mode="nearest")
    return torch.cat([soft, hard]).clamp(0, 1)

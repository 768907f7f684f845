"""The denoising loop: from noisy latents to clean ones, and from latents to a picture.

It is the loop of the plain diffusers pipelines for Stable Diffusion 1.x, 2.x and SDXL, operation by
operation, so pictures equal theirs; written out here because a step has to be watched (progress,
cancel, a preview of where it is going), and because several pictures may share a call of the UNet
(see ``company``). A picture asks the UNet exactly once per timestep of its noise scheduler.

Shapes: latents (B, C, H/8, W/8); with guidance the UNet sees 2B, the unguided half first.
Source: diffusers, StableDiffusionPipeline.__call__ and StableDiffusionXLPipeline.__call__;
classifier-free guidance: Ho & Salimans 2022 (arXiv 2207.12598), equation 6.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from generation_app.engine.errors import EngineError
from generation_app.engine.precision import without_overflow
from generation_app.engine.prompts import Embeddings
from generation_app.engine.starts import Start


@dataclass(frozen=True)
class Step:
    """One finished step: what the networks saw and said, for a preview.

    ``model_input`` and ``model_pred`` are (B, C, H/8, W/8), guidance already applied to the latter.
    """

    index: int
    total: int
    timestep: torch.Tensor
    model_input: torch.Tensor
    model_pred: torch.Tensor


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is told beside the latents; with guidance the unguided half comes first."""

    prompt_embeds: torch.Tensor
    added: dict[str, torch.Tensor] | None
    timestep_cond: torch.Tensor | None
    guidance_scale: float

    @property
    def is_guided(self) -> bool:
        """Whether each step runs the UNet on two halves."""
        return self.guidance_scale > 1 and self.timestep_cond is None


def needs_negative(pipe: Any, guidance_scale: float) -> bool:
    """Whether a request needs the negative prompt's embeddings at all."""
    return guidance_scale > 1 and pipe.unet.config.time_cond_proj_dim is None


def condition(
    pipe: Any,
    positive: Embeddings,
    negative: Embeddings | None,
    *,
    guidance_scale: float,
    size: tuple[int, int],
) -> Conditioning:
    """Put together what the UNet is told.

    Args:
        pipe: A Stable Diffusion or SDXL pipeline.
        positive: The prompt's embeddings.
        negative: The negative prompt's; None without guidance.
        guidance_scale: How strongly the prompt pulls.
        size: (width, height) in pixels.
    """
    halves = [positive] if negative is None else [negative, positive]
    embeds = torch.cat([half.prompt_embeds for half in halves])
    added = None
    if positive.pooled_prompt_embeds is not None:
        width, height = size
        ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=embeds.dtype)
        pooled = torch.cat(
            [h.pooled_prompt_embeds for h in halves if h.pooled_prompt_embeds is not None]
        )
        added = {"text_embeds": pooled, "time_ids": ids.repeat(len(halves), 1).to(embeds.device)}
    timestep_cond = None
    if (projected := pipe.unet.config.time_cond_proj_dim) is not None:
        strength = torch.tensor(guidance_scale - 1).repeat(1)
        timestep_cond = pipe.get_guidance_scale_embedding(strength, embedding_dim=projected)
        timestep_cond = timestep_cond.to(device=embeds.device, dtype=embeds.dtype)
    return Conditioning(embeds, added, timestep_cond, guidance_scale)


@dataclass(frozen=True)
class Call:
    """What the UNet is asked for one picture at one step; its answer has guidance applied.

    ``model_input`` is (1, C, H/8, W/8).
    """

    model_input: torch.Tensor
    timestep: torch.Tensor
    conditioning: Conditioning

    @property
    def shape(self) -> tuple[int, ...]:
        """Calls of one shape can be answered together."""
        return *self.model_input.shape[1:], *self.conditioning.prompt_embeds.shape[1:]


def denoise(
    scheduler: Any,
    conditioning: Conditioning,
    start: Start,
    *,
    generator: torch.Generator,
    on_step: Callable[[Step], None],
) -> Generator[Call, torch.Tensor, torch.Tensor]:
    """Denoise one picture; whoever runs it answers each of its calls (see ``Predictor``).

    Args:
        scheduler: A fresh noise scheduler whose timesteps are set.
        conditioning: What the UNet is told.
        start: The noisy latents, the timesteps that are left, and the hole if there is one.
        generator: The picture's own generator, from which the start was drawn too.
        on_step: Called after each step; what it raises ends the loop.

    Returns:
        The latents (1, C, H/8, W/8).
    """
    latents, timesteps, hole = start.latents, start.timesteps, start.hole
    dtype = conditioning.prompt_embeds.dtype
    accepted = inspect.signature(scheduler.step).parameters
    options: dict[str, Any] = {"eta": 0.0, "generator": generator}
    options = {name: value for name, value in options.items() if name in accepted}
    for index, timestep in enumerate(timesteps):
        model_input = scheduler.scale_model_input(latents, timestep)
        widened = model_input if hole is None else hole.widen(model_input)
        model_pred = yield Call(widened, timestep, conditioning)
        latents = scheduler.step(model_pred, timestep, latents, **options, return_dict=False)[0]
        latents = latents.to(dtype)
        if hole is not None:
            following = timesteps[index + 1] if index + 1 < len(timesteps) else None
            latents = hole.restore(latents, scheduler, following)
        on_step(Step(index, len(timesteps), timestep, model_input, model_pred))
    return latents


@dataclass(frozen=True)
class _Told:
    """What the UNet is told for several pictures, put together once for all their steps."""

    parts: tuple[Conditioning, ...]
    prompt_embeds: torch.Tensor
    added: dict[str, torch.Tensor] | None
    timestep_cond: torch.Tensor | None


class Predictor:
    """Runs the UNet for several pictures at once, with guidance on both halves of each.

    Pictures that ask together again are told the very tensors of the step before, by which
    ``word_memory`` knows them.
    """

    def __init__(self, pipe: Any) -> None:
        """Answers with the UNet of a Stable Diffusion or SDXL pipeline."""
        self._unet = pipe.unet
        self._told: dict[tuple[int, ...], _Told] = {}

    def __call__(self, calls: Sequence[Call]) -> list[torch.Tensor]:
        """Answer some calls.

        Args:
            calls: Of one shape and one timestep.

        Returns:
            The predictions (1, C, H/8, W/8), guidance applied, one for each call.
        """
        told = self._put_together(calls)
        inputs = [
            torch.cat([call.model_input] * 2) if call.conditioning.is_guided else call.model_input
            for call in calls
        ]
        model_pred: torch.Tensor = self._unet(
            _joined(inputs),
            calls[0].timestep,
            encoder_hidden_states=told.prompt_embeds,
            timestep_cond=told.timestep_cond,
            added_cond_kwargs=told.added,
            return_dict=False,
        )[0]
        parts = model_pred.split([len(rows) for rows in inputs])
        return [_guided(part, one) for part, one in zip(parts, told.parts, strict=True)]

    def _put_together(self, calls: Sequence[Call]) -> _Told:
        parts = tuple(call.conditioning for call in calls)
        before = self._told.get(calls[0].shape)
        if before is None or [*map(id, before.parts)] != [*map(id, parts)]:
            added = None
            if (names := parts[0].added) is not None:
                added = {n: _joined([one.added[n] for one in parts if one.added]) for n in names}
            conds = [one.timestep_cond for one in parts if one.timestep_cond is not None]
            words = _joined([one.prompt_embeds for one in parts])
            before = _Told(parts, words, added, _joined(conds) if conds else None)
            self._told[calls[0].shape] = before
        return before


def _joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Put rows together; those of one picture stay as they are, layout and all."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _guided(model_pred: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
    if not conditioning.is_guided:
        return model_pred
    unguided, guided_pred = model_pred.chunk(2)
    return unguided + conditioning.guidance_scale * (guided_pred - unguided)


def decode(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    """Turn latents into pixels.

    Args:
        pipe: The pipeline whose VAE is used.
        latents: (B, C, H/8, W/8).

    Returns:
        (B, 3, H, W), about -1 to 1.
    """
    vae = pipe.vae
    with without_overflow(vae):
        latents = latents.to(vae.dtype)
        pixels: torch.Tensor = vae.decode(_unscaled(vae, latents), return_dict=False)[0]
    return pixels


def _unscaled(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Undo the scaling by which latents have unit variance in the UNet."""
    factor = vae.config.scaling_factor
    mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if mean is None or std is None:
        return latents / factor
    shape = (1, -1, 1, 1)
    mean_, std_ = (
        torch.tensor(x).view(shape).to(latents.device, latents.dtype) for x in (mean, std)
    )
    return latents * std_ / factor + mean_


def require_finite(pixels: torch.Tensor) -> None:
    """Refuse a picture that is not numbers; it would come out black.

    Raises:
        EngineError: ``non_finite_image``.
    """
    if not bool(torch.isfinite(pixels).all()):
        raise EngineError("non_finite_image")

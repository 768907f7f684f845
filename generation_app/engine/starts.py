"""Where a denoising starts: pure noise, a picture with noise on it, or a picture with a hole.

The noise scheduler's timesteps are set here, and cut by the strength where a picture stands for the
first of them. The random numbers are drawn in the order in which the plain diffusers pipelines draw
them, so that a seed means the same picture.

Shapes: latents (1, C, h, w); masks (1, 1, h, w), 1 where it is painted anew.
Source: diffusers, StableDiffusion(XL){,Img2Img,Inpaint}Pipeline; SDEdit, Meng et al. 2021 (arXiv
2108.01073); blending with a mask: Avrahami et al. 2022 (arXiv 2206.02779).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from generation_app.engine.inputs import EncodedPicture
from generation_app.engine.request import kept_steps


@dataclass(frozen=True)
class Hole:
    """What is around the place that is painted anew.

    Attributes:
        mask: (1, 1, h, w).
        kept: The picture's latents; None for a UNet that is told of the hole itself.
        noise: What the start was made of.
        told: (1, 1 + C, h, w) that such a UNet reads beside the latents, else None.
    """

    mask: torch.Tensor
    kept: torch.Tensor | None
    noise: torch.Tensor
    told: torch.Tensor | None

    def widen(self, model_input: torch.Tensor) -> torch.Tensor:
        """Add what the UNet is told of the hole to its input."""
        return model_input if self.told is None else torch.cat([model_input, self.told], dim=1)

    def restore(
        self, latents: torch.Tensor, scheduler: Any, timestep: torch.Tensor | None
    ) -> torch.Tensor:
        """Put the picture back around the hole after a step.

        Args:
            latents: What the step made.
            scheduler: The noise scheduler.
            timestep: The next one, to whose noise the picture is brought; None at the end.
        """
        if self.kept is None:
            return latents
        around = self.kept
        if timestep is not None:
            around = scheduler.add_noise(around, self.noise, torch.tensor([timestep]))
        return (1 - self.mask) * around + self.mask * latents


@dataclass(frozen=True)
class Start:
    """Latents as noisy as the first of the timesteps, and the hole if there is one."""

    latents: torch.Tensor
    timesteps: torch.Tensor
    hole: Hole | None = None


def reads_holes(pipe: Any) -> bool:
    """Whether a UNet was made for inpainting and reads the mask and the picture beside latents."""
    channels: int = pipe.vae.config.latent_channels
    return bool(pipe.unet.config.in_channels == 2 * channels + 1)


def set_timesteps(
    scheduler: Any, num_inference_steps: int, strength: float, device: torch.device
) -> torch.Tensor:
    """Set a noise scheduler's timesteps and return those that are left at a strength."""
    scheduler.set_timesteps(num_inference_steps, device=device)
    skipped = num_inference_steps - kept_steps(num_inference_steps, strength)
    first = skipped * scheduler.order
    if skipped and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    timesteps: torch.Tensor = scheduler.timesteps[first:]
    return timesteps


def from_noise(
    pipe: Any,
    scheduler: Any,
    *,
    num_inference_steps: int,
    size: tuple[int, int],
    generator: torch.Generator,
) -> Start:
    """Start from pure noise.

    Args:
        pipe: The pipeline.
        scheduler: A fresh noise scheduler.
        num_inference_steps: How many steps are asked for.
        size: (width, height) in pixels.
        generator: The picture's own generator, on the CPU, so that a seed means the same noise on
            every device.
    """
    unet = pipe.unet
    timesteps = set_timesteps(scheduler, num_inference_steps, 1.0, unet.device)
    noise = _noise(pipe, size, generator)
    return Start(noise * scheduler.init_noise_sigma, timesteps)


def from_latents(
    pipe: Any,
    scheduler: Any,
    latents: torch.Tensor,
    *,
    num_inference_steps: int,
    strength: float,
    generator: torch.Generator,
) -> Start:
    """Start from a picture's latents with the noise of the first timestep that is left.

    Args:
        pipe: The pipeline.
        scheduler: A fresh noise scheduler.
        latents: (1, C, h, w).
        num_inference_steps: How many steps are asked for.
        strength: Which part of them is taken; at least one.
        generator: The picture's own generator.
    """
    unet = pipe.unet
    timesteps = set_timesteps(scheduler, num_inference_steps, strength, unet.device)
    noise = randn_tensor(latents.shape, generator=generator, device=unet.device, dtype=unet.dtype)
    return Start(scheduler.add_noise(latents, noise, timesteps[:1]), timesteps)


class HoledPicture:
    """A picture and its mask, encoded once for all seeds of a request."""

    def __init__(self, pipe: Any, image: Image.Image, mask: Image.Image) -> None:
        self._pipe = pipe
        processor = VaeImageProcessor(
            vae_scale_factor=pipe.vae_scale_factor,
            do_normalize=False,
            do_binarize=True,
            do_convert_grayscale=True,
        )
        width, height = self.size = image.size
        pixels = pipe.image_processor.preprocess(image)
        hole = processor.preprocess(mask, height=height, width=width)
        self._picture = EncodedPicture(pipe, pixels)
        factor = pipe.vae_scale_factor
        small = torch.nn.functional.interpolate(hole, size=(height // factor, width // factor))
        # Here and below laid out plainly, as in plain diffusers: else the latents take on the
        # strides of a picture, and the networks round otherwise.
        small = small.clone(memory_format=torch.contiguous_format)
        self._mask = small.to(device=pipe.unet.device, dtype=pipe.unet.dtype)
        self._told = reads_holes(pipe)
        self._around = EncodedPicture(pipe, pixels * (hole < 0.5)) if self._told else None

    def start(
        self,
        scheduler: Any,
        *,
        num_inference_steps: int,
        strength: float,
        generator: torch.Generator,
    ) -> Start:
        """Start from the picture, or from noise at full strength; see ``from_latents``."""
        pipe = self._pipe
        timesteps = set_timesteps(scheduler, num_inference_steps, strength, pipe.unet.device)
        whole = strength == 1
        kept = None if self._told and whole else self._picture.draw(generator).contiguous()
        noise = _noise(pipe, self.size, generator)
        if whole or kept is None:
            latents = noise * scheduler.init_noise_sigma
        else:
            latents = scheduler.add_noise(kept, noise, timesteps[:1])
        if self._around is None:
            # diffusers encodes the picture around the hole here in any case and never uses it.
            _noise(pipe, self.size, generator)
            return Start(latents, timesteps, Hole(self._mask, kept, noise, None))
        told = torch.cat([self._mask, self._around.draw(generator)], dim=1)
        return Start(latents, timesteps, Hole(self._mask, None, noise, told))


def _noise(pipe: Any, size: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    width, height = size
    factor = pipe.vae_scale_factor
    shape = (1, pipe.vae.config.latent_channels, height // factor, width // factor)
    noise: torch.Tensor = randn_tensor(
        shape, generator=generator, device=pipe.unet.device, dtype=pipe.unet.dtype
    )
    return noise

"""What a denoiser is asked to predict, and how wrong it was.

Shape legend: latents, noise, noisy_latents, model_pred and target (B, C, h, w);
timesteps (B,) whole numbers from 0 (nearly clean) to T - 1 (nearly noise).

Sources: Ho et al. 2020 (arXiv:2006.11239) eq. 4 and 14; Salimans & Ho 2022
(arXiv:2202.00512) for v-prediction; Hang et al. 2023 (arXiv:2303.09556) for min-SNR;
Song & Dhariwal 2023 (arXiv:2310.14189) eq. 7 for the pseudo-Huber loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch


@dataclass(frozen=True)
class Draws:
    """All that is random in one micro-batch, drawn on the CPU.

    Attributes:
        posterior_noise: (B, C, h, w), makes latents of the VAE's posterior.
        noise: (B, C, h, w), what is added to them.
        timesteps: (B,).
        variants: (B,) in 0…1, chooses among the variants of each picture.
        keeps_caption: (B,) whether each picture keeps its caption.
        captions: (B,) in 0…1, chooses among the prompts of each picture.
    """

    posterior_noise: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    variants: torch.Tensor
    keeps_caption: torch.Tensor
    captions: torch.Tensor

    def of(self, rows: slice | Sequence[int]) -> Draws:
        """What belongs to some of the pictures."""
        return Draws(*(getattr(self, field.name)[rows] for field in fields(self)))

    def chunks(self, size: int) -> Iterator[Draws]:
        """The same in parts of at most ``size`` pictures."""
        for start in range(0, len(self.timesteps), size):
            yield self.of(slice(start, start + size))


def draw(
    generator: torch.Generator,
    shape: tuple[int, ...],
    *,
    num_timesteps: int,
    caption_dropout: float,
    noise_offset: float = 0,
) -> Draws:
    """Draws a micro-batch; the same generator state gives the same draws on any device.

    Args:
        generator: A CPU generator.
        shape: (B, C, h, w) of the latents.
        num_timesteps: T.
        caption_dropout: Share of captions to drop.
        noise_offset: Strength of noise that is constant over a picture's channel. Source:
            Guttenberg 2023, "Diffusion with Offset Noise".
    """
    batch = shape[0]
    draws = Draws(
        posterior_noise=torch.randn(shape, generator=generator),
        noise=torch.randn(shape, generator=generator),
        timesteps=torch.randint(num_timesteps, (batch,), generator=generator),
        variants=torch.rand(batch, generator=generator),
        keeps_caption=torch.rand(batch, generator=generator) >= caption_dropout,
        captions=torch.rand(batch, generator=generator),
    )
    if noise_offset > 0:
        constant = torch.randn((*shape[:2], 1, 1), generator=generator)
        draws.noise.add_(constant, alpha=noise_offset)
    return draws


class Objective:
    """The loss of one noise scheduler's configuration."""

    def __init__(
        self,
        noise_scheduler: Any,
        *,
        snr_gamma: float,
        device: str,
        huber_delta: float | None = None,
    ) -> None:
        """Makes the tables.

        Args:
            noise_scheduler: A diffusers scheduler with ``alphas_cumprod``.
            snr_gamma: Gamma of the min-SNR weights; 0 weighs all timesteps alike.
            device: Where the tables are kept.
            huber_delta: From this error on the loss grows in a line, not in a square;
                ``None`` is the squared error.

        Raises:
            ValueError: If the scheduler predicts something unknown.
        """
        self.prediction_type: str = noise_scheduler.config.prediction_type
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(f"unknown prediction type {self.prediction_type!r}")
        alphas_cumprod = noise_scheduler.alphas_cumprod.to(torch.float64)
        self.num_timesteps = len(alphas_cumprod)
        self._signal = alphas_cumprod.sqrt().float().to(device)
        self._noise = (1 - alphas_cumprod).sqrt().float().to(device)
        self._weights = self._min_snr(alphas_cumprod, snr_gamma).float().to(device)
        self._is_weighted = snr_gamma > 0
        self._huber_delta = huber_delta

    def _min_snr(self, alphas_cumprod: torch.Tensor, gamma: float) -> torch.Tensor:
        """Loss weights by timestep: min(SNR, gamma) / SNR, or / (SNR + 1) for v."""
        snr = alphas_cumprod / (1 - alphas_cumprod)
        if gamma <= 0:
            return torch.ones_like(snr)
        # A schedule that ends in pure noise has SNR 0 there; epsilon's weight tends to 1.
        divisor = snr + 1 if self.prediction_type == "v_prediction" else snr.clamp(min=1e-12)
        return snr.clamp(min=1e-12, max=gamma) / divisor

    def add_noise(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Noisy latents: sqrt(ā) · latents + sqrt(1 - ā) · noise."""
        signal, share = self._at(timesteps)
        return signal * latents + share * noise

    def target(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """What the denoiser should say: the noise, or v = sqrt(ā) · noise - sqrt(1 - ā) · x."""
        if self.prediction_type == "epsilon":
            return noise
        signal, share = self._at(timesteps)
        return signal * noise - share * latents

    def weights(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Loss weight (B,) of each timestep."""
        return self._weights[timesteps]

    def loss(
        self, model_pred: torch.Tensor, target: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Weighted mean error of a batch, in fp32, on the device."""
        error = self._error(model_pred.float(), target)
        if not self._is_weighted:
            return error.mean()
        return (error.mean(dim=(1, 2, 3)) * self.weights(timesteps)).mean()

    def _error(self, model_pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Squared, or pseudo-Huber: squared near zero, 2 · delta · |error| far from it."""
        error = torch.nn.functional.mse_loss(model_pred, target, reduction="none")
        if self._huber_delta is None:
            return error
        delta = self._huber_delta
        return 2 * delta * ((error + delta**2).sqrt() - delta)

    def _at(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (-1, 1, 1, 1)
        return self._signal[timesteps].view(shape), self._noise[timesteps].view(shape)

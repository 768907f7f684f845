"""The loop that the common example scripts run: our peer in ``benchmarks/training.py``.

Every step reads the pictures, encodes them with the VAE, encodes the captions with the text
encoder(s), runs peft's layers as they are and updates with plain AdamW; the loss is read every
step for the progress bar. Nothing is cached.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig

from models_app.architectures import denoiser_arguments, encode_prompts, get_architecture
from models_app.loading import load_components
from training_app.trainer.adapters import adapter_settings
from training_app.trainer.dataset import Example, read_pixels
from training_app.trainer.request import TrainingRequest


class PlainTraining:
    """A LoRA training without any of our means.

    Args:
        request: The run; rank, targets, batch, precision and learning rate are taken from it.
        examples: Its pictures.
        dtype: What the networks compute in; adapters are fp32 here too.
    """

    def __init__(
        self, request: TrainingRequest, examples: Sequence[Example], dtype: torch.dtype
    ) -> None:
        self.request, self.examples, self.dtype = request, examples, dtype
        self.family = get_architecture(request.architecture)
        parts = load_components(
            request.base_folder, request.architecture, dtype=dtype, device=request.device
        )
        self.parts, self.denoiser, self.vae = parts, parts["unet"], parts["vae"]
        self.noise_scheduler = parts["scheduler"]
        with torch.random.fork_rng():
            self.denoiser.add_adapter(LoraConfig(**adapter_settings(request.config, "unet")))
        self.parameters = [p for p in self.denoiser.parameters() if p.requires_grad]
        for parameter in self.parameters:
            parameter.data = parameter.data.float()
        self.optimizer = torch.optim.AdamW(self.parameters, lr=request.config.learning_rate)
        self.generator = torch.Generator().manual_seed(request.config.seed)
        self.step = 0

    def _batch(self) -> tuple[torch.Tensor, list[Example]]:
        size = self.request.config.train_batch_size
        start = self.step * size
        members = [self.examples[(start + i) % len(self.examples)] for i in range(size)]
        pixels = [read_pixels(e, e.variants[0]) for e in members]
        return torch.cat(pixels), members

    def do_step(self) -> float:
        """One optimizer step; returns the loss, which the host waits for."""
        config, device = self.request.config, self.request.device
        pixels, members = self._batch()
        with torch.no_grad():
            posterior = self.vae.encode(pixels.to(device, self.dtype)).latent_dist
            latents = posterior.sample() * self.vae.config.scaling_factor
            conditioning = encode_prompts(self.family, self.parts, [e.prompt for e in members])
        noise = torch.randn(latents.shape, generator=self.generator).to(device, self.dtype)
        timesteps = torch.randint(1000, (len(latents),), generator=self.generator).to(device)
        noisy_latents = self.noise_scheduler.add_noise(latents, noise, timesteps)
        with torch.autocast(
            torch.device(device).type, self.dtype, enabled=self.dtype != torch.float32
        ):
            model_pred = self.denoiser(
                noisy_latents, timesteps, return_dict=False, **self._arguments(conditioning)
            )[0]
        loss = torch.nn.functional.mse_loss(model_pred.float(), noise.float())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return loss.item()

    def _arguments(self, conditioning: Any) -> dict[str, Any]:
        return denoiser_arguments(self.family, conditioning)

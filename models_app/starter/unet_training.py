"""Stage two: train the UNet and the text encoder together on the encoded world.

Shape legend: latents ``(B, 16, 8, 8)``, scaled to unit variance; token ids
``(B, 77)``; prompt embeddings ``(B, 77, 128)``.
Source: Ho et al. 2020, equation 14 (noise prediction); Ho & Salimans 2022 (empty
captions for guidance); Hang et al. 2023, equation 9 (min-SNR weights).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

from models_app.starter.networks import make_noise_scheduler, make_text_encoder, make_unet
from models_app.starter.training import TrainingRun, place
from models_app.starter.vae_training import to_tensor
from models_app.starter.wide_world import draw_unnamed_figure
from models_app.starter.world import (
    COLOURS,
    draw_scene,
    figure_caption,
    training_scene,
    vary_caption,
)

BATCH_SIZE = 64
PEAK_LEARNING_RATE = 6e-4
EMPTY_CAPTION_SHARE = 0.1
# Made-up words for figures without a name: so the clause of the background is
# understood beside any noun, and a person's own creature has room in the model.
UNNAMED_SHARE = 0.18
MIN_SNR_GAMMA = 5.0
ENCODE_BATCH_SIZE = 64


def draw_captioned(rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """One training picture with its caption."""
    if rng.random() < UNNAMED_SHARE:
        background = list(COLOURS)[rng.integers(len(COLOURS))]
        return np.asarray(draw_unnamed_figure(background, rng)), figure_caption(background, rng)
    scene = training_scene(rng)
    return np.asarray(draw_scene(scene, rng)), vary_caption(scene.caption, rng)


@torch.no_grad()
def encode_world(vae: AutoencoderKL, count: int, seed: int) -> tuple[torch.Tensor, list[str]]:
    """Draw and encode the training pictures once.

    Returns:
        Unscaled latents ``(count, 16, 8, 8)``, the posterior's means, and the captions.
    """
    rng = np.random.default_rng((seed, 3))
    device = next(vae.parameters()).device
    latents, captions = [], []
    for start in range(0, count, ENCODE_BATCH_SIZE):
        drawn = [draw_captioned(rng) for _ in range(min(ENCODE_BATCH_SIZE, count - start))]
        captions += [caption for _, caption in drawn]
        latents.append(
            vae.encode(to_tensor([picture for picture, _ in drawn], device)).latent_dist.mode()
        )
    return torch.cat(latents), captions


def _fingerprint(vae: AutoencoderKL) -> str:
    """A short name of the weights, lest another autoencoder's latents be taken for its own."""
    digest = hashlib.sha256()
    for parameter in vae.parameters():
        digest.update(parameter.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def cached_world(
    path: Path, vae: AutoencoderKL, count: int, seed: int
) -> tuple[torch.Tensor, list[str]]:
    """The encoded world from its cache file, made first if there is none for these values."""
    origin = f"{_fingerprint(vae)}-{count}-{seed}"
    if path.exists():
        with safe_open(path, "pt", device=str(next(vae.parameters()).device)) as file:
            metadata = file.metadata()
            if metadata["origin"] == origin:
                return file.get_tensor("latents"), json.loads(metadata["captions"])
    latents, captions = encode_world(vae, count, seed)
    save_file({"latents": latents}, path, {"captions": json.dumps(captions), "origin": origin})
    return latents, captions


def measure_scaling_factor(latents: torch.Tensor) -> float:
    """The factor that gives the latents unit variance, as Stable Diffusion defines it."""
    return round(1 / float(latents.std()), 5)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids ``(B, 77)``, padded and cut as the pipeline does it."""
    encoded = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    token_ids: torch.Tensor = encoded.input_ids
    return token_ids


def min_snr_weights(alphas_cumprod: torch.Tensor, gamma: float = MIN_SNR_GAMMA) -> torch.Tensor:
    """Weight of each timestep's squared error of the noise: min(SNR, gamma) / SNR."""
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return snr.clamp(max=gamma) / snr


def make_loss(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    latents: torch.Tensor,
    token_ids: torch.Tensor,
) -> Callable[[np.random.Generator, torch.Generator], torch.Tensor]:
    """Build the loss of one step.

    Args:
        unet: Predicts the noise.
        text_encoder: Reads the captions.
        latents: Scaled latents of the whole training set.
        token_ids: ``(N + 1, 77)``: each picture's caption, and last the empty one.
    """
    device = latents.device
    alphas_cumprod = make_noise_scheduler().alphas_cumprod.to(device)
    weights = min_snr_weights(alphas_cumprod)
    empty = len(token_ids) - 1

    def loss_of_step(rng: np.random.Generator, generator: torch.Generator) -> torch.Tensor:
        chosen = rng.integers(len(latents), size=BATCH_SIZE)
        told = np.where(rng.random(BATCH_SIZE) < EMPTY_CAPTION_SHARE, empty, chosen)
        clean = latents[torch.from_numpy(chosen).to(device)]
        ids = token_ids[torch.from_numpy(told).to(device)]
        noise = torch.randn(clean.shape, generator=generator, device=device)
        timesteps = torch.randint(
            len(alphas_cumprod), (BATCH_SIZE,), generator=generator, device=device
        )
        signal = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noisy_latents = signal.sqrt() * clean + (1 - signal).sqrt() * noise
        with torch.autocast(device.type, torch.bfloat16):
            prompt_embeds = text_encoder(ids).last_hidden_state
            model_pred = unet(noisy_latents, timesteps, prompt_embeds).sample
        error = (model_pred.float() - noise).square().mean((1, 2, 3))
        return (weights[timesteps] * error).mean()

    return loss_of_step


def train_unet(
    work_dir: Path,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    *,
    max_steps: int,
    world_size: int,
    seed: int,
    on_checkpoint: Callable[[UNet2DConditionModel, CLIPTextModel, TrainingRun], None] | None = None,
) -> tuple[UNet2DConditionModel, CLIPTextModel, TrainingRun]:
    """Train both networks, or finish an unfinished training.

    Args:
        work_dir: Folder of the checkpoint and the encoded world.
        vae: The finished autoencoder; its ``scaling_factor`` is set here.
        tokenizer: The language.
        max_steps: The stage's whole length in steps.
        world_size: How many pictures are drawn and encoded.
        seed: Seed of everything.
        on_checkpoint: Called with the averaged networks after each checkpoint on the way.

    Returns:
        The networks with their averaged weights, and the run.
    """
    latents, captions = cached_world(work_dir / "world.safetensors", vae, world_size, seed)
    scaling_factor = measure_scaling_factor(latents)
    vae.register_to_config(scaling_factor=scaling_factor)
    torch.manual_seed(seed + 1)
    unet = place(make_unet(), latents.device)
    text_encoder = place(make_text_encoder(tokenizer), latents.device)
    if latents.device.type == "cpu":
        # The plain formula: its backward pass is three times faster on a CPU at this size.
        unet.set_attn_processor(AttnProcessor())
        text_encoder.set_attn_implementation("eager")
    networks = {"unet": unet, "text_encoder": text_encoder}
    run = TrainingRun(
        work_dir / "unet.safetensors",
        networks,
        seed=seed + 1,
        peak_learning_rate=PEAK_LEARNING_RATE,
    )
    if run.step < max_steps:
        token_ids = tokenize(tokenizer, [*captions, ""]).to(latents.device)

        def checkpoint() -> None:
            if on_checkpoint is not None:
                run.swap_averages()
                on_checkpoint(unet, text_encoder, run)
                run.swap_averages()

        run.train(
            max_steps,
            make_loss(unet, text_encoder, latents * scaling_factor, token_ids),
            checkpoint,
        )
    run.swap_averages()
    for network in (unet, text_encoder):
        network.eval().requires_grad_(False)
    return unet, text_encoder, run

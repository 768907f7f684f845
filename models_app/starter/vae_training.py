"""Stage one: train the autoencoder on the wide world and measure it on the unknown.

Shape legend: pictures ``(B, 3, H, W)`` in [-1, 1]; latents ``(B, 16, H/8, W/8)``.
Source: Kingma & Welling 2013 (the variational autoencoder); Rombach et al. 2021,
section 3.1 (the autoencoder of latent diffusion, here without its adversary).
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from torch.nn import functional

from models_app.starter.creatures import KINDS, draw_creature
from models_app.starter.glyphs import draw_random_glyph
from models_app.starter.networks import make_vae
from models_app.starter.training import TrainingRun, best_device, place
from models_app.starter.wide_world import draw_unnamed_figure, draw_wide_picture
from models_app.starter.world import COLOURS, draw_scene, training_scene

logger = logging.getLogger(__name__)

BATCH_SIZE = 16
PEAK_LEARNING_RATE = 1.2e-3
KL_WEIGHT = 1e-4
# The gate below which the UNet does not get its time: decibels on held-out pictures.
GATE = {"creatures": 20.0, "glyphs": 18.0}


def draw_pool(count: int, seed: int) -> np.ndarray:
    """Draw the training pictures: three quarters wide world, the rest plain scenes.

    Returns:
        ``(count, H, W, 3)`` uint8.
    """
    rng = np.random.default_rng((seed, 1))
    backgrounds = list(COLOURS)
    pool = []
    for index in range(count):
        if index % 8 == 6:
            picture = draw_scene(training_scene(rng), rng)
        elif index % 8 == 7:
            picture = draw_unnamed_figure(backgrounds[rng.integers(len(backgrounds))], rng)
        else:
            picture = draw_wide_picture(rng)
        pool.append(np.asarray(picture))
    return np.stack(pool)


def cached_pool(work_dir: Path, count: int, seed: int) -> np.ndarray:
    """The pool from its cache file, drawn first if there is none."""
    path = work_dir / f"pool-{count}-{seed}.npy"
    pool: np.ndarray
    if path.exists():
        pool = np.load(path, allow_pickle=False)
        return pool
    pool = draw_pool(count, seed)
    work_dir.mkdir(parents=True, exist_ok=True)
    # Written aside first: a build that is killed here must not find half a file.
    aside = path.with_suffix(".part.npy")
    np.save(aside, pool, allow_pickle=False)
    aside.replace(path)
    return pool


def random_view(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One of the 192 ways to see a picture: mirrored, turned, colours exchanged or inverted."""
    picture = np.rot90(picture, int(rng.integers(4)))
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    picture = picture[:, :, rng.permutation(3)]
    return 255 - picture if rng.random() < 0.25 else picture


def to_tensor(pictures: list[np.ndarray] | list[Image.Image], device: torch.device) -> torch.Tensor:
    """Stack pictures into ``(B, 3, H, W)`` float32 in [-1, 1]."""
    stacked = np.stack([np.asarray(picture) for picture in pictures])
    tensor = torch.from_numpy(np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))).to(device)
    return tensor.float() / 127.5 - 1


def reconstruction_loss(
    vae: AutoencoderKL, pictures: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """L1 + L2 + half the L1 of 4x4 means + a little of the KL divergence.

    The means keep flat colours exact, which a viewer notices before any edge.
    """
    with torch.autocast(pictures.device.type, torch.bfloat16):
        posterior = vae.encode(pictures).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(
            posterior.mean.shape, generator=generator, device=pictures.device
        )
        decoded = vae.decode(latents).sample
    error = decoded.float() - pictures
    pooled = functional.avg_pool2d(error, 4)
    mean, log_variance = posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
    return error.abs().mean() + error.square().mean() + 0.5 * pooled.abs().mean() + KL_WEIGHT * kl


def held_out_pictures(count: int, seed: int = 99) -> dict[str, list[Image.Image]]:
    """Pictures no training ever shows: creatures, glyphs and fresh pictures of the wide world."""
    rng = np.random.default_rng((seed, 2))
    backgrounds = list(COLOURS)
    return {
        "creatures": [
            draw_creature(KINDS[i % 2], backgrounds[rng.integers(len(backgrounds))], rng)
            for i in range(count)
        ],
        "glyphs": [draw_random_glyph(rng) for _ in range(count)],
        "wide world": [draw_wide_picture(rng) for _ in range(count)],
    }


@torch.no_grad()
def measure_psnr(vae: AutoencoderKL, count: int = 48) -> dict[str, float]:
    """Mean peak signal-to-noise ratio in decibels over each held-out kind of picture."""
    scores = {}
    for kind, pictures in held_out_pictures(count).items():
        original = to_tensor(pictures, next(vae.parameters()).device)
        decoded = vae.decode(vae.encode(original).latent_dist.mode()).sample.clamp(-1, 1)
        mse = ((decoded - original) / 2).square().mean((1, 2, 3))
        scores[kind] = round(float((-10 * mse.log10()).mean()), 2)
    return scores


def passes_gate(scores: dict[str, float]) -> bool:
    """Whether the autoencoder is good enough for the UNet to be trained on it."""
    return all(scores[kind] >= least for kind, least in GATE.items())


def train_vae(
    work_dir: Path, max_steps: int, pool_size: int, seed: int
) -> tuple[AutoencoderKL, TrainingRun]:
    """Train the autoencoder, or finish an unfinished training.

    Args:
        work_dir: Folder of the checkpoint and the drawn pictures.
        max_steps: The stage's whole length in steps.
        pool_size: How many pictures are drawn.
        seed: Seed of everything.

    Returns:
        The network with its averaged weights, and the run.
    """
    torch.manual_seed(seed)
    vae = place(make_vae(), best_device())
    run = TrainingRun(
        work_dir / "vae.safetensors", {"vae": vae}, seed=seed, peak_learning_rate=PEAK_LEARNING_RATE
    )
    if run.step < max_steps:
        pool = cached_pool(work_dir, pool_size, seed)

        def loss_of_step(rng: np.random.Generator, generator: torch.Generator) -> torch.Tensor:
            chosen = rng.integers(len(pool), size=BATCH_SIZE)
            pictures = to_tensor([random_view(pool[index], rng) for index in chosen], run.device)
            return reconstruction_loss(vae, pictures, generator)

        def report() -> None:
            run.swap_averages()
            logger.info("vae step %d held-out PSNR %s", run.step, measure_psnr(vae, 16))
            run.swap_averages()

        run.train(max_steps, loss_of_step, report)
    run.swap_averages()
    return vae.eval().requires_grad_(False), run

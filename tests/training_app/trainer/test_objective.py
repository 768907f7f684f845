"""Noise, targets and weights against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler

from training_app.trainer.objective import Objective, draw
from training_app.trainer.randomness import derive_seed, step_generator

SHAPE = (5, 4, 8, 8)


def _scheduler(**changes: object) -> DDPMScheduler:
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return DDPMScheduler(**(settings | changes))


def _tensors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(SHAPE, generator=generator)
    noise = torch.randn(SHAPE, generator=generator)
    return latents, noise, torch.tensor([0, 1, 250, 500, 999])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_noise_and_target_are_those_of_diffusers(prediction_type: str) -> None:
    scheduler = _scheduler(prediction_type=prediction_type)
    objective = Objective(scheduler, snr_gamma=0, device="cpu")
    latents, noise, timesteps = _tensors()
    torch.testing.assert_close(
        objective.add_noise(latents, noise, timesteps),
        scheduler.add_noise(latents, noise, timesteps),
    )
    expected = noise
    if prediction_type == "v_prediction":
        expected = scheduler.get_velocity(latents, noise, timesteps)
    torch.testing.assert_close(objective.target(latents, noise, timesteps), expected)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_perfect_prediction_gives_the_clean_latents_back(prediction_type: str) -> None:
    objective = Objective(_scheduler(prediction_type=prediction_type), snr_gamma=5, device="cpu")
    latents, noise, timesteps = _tensors()
    noisy = objective.add_noise(latents, noise, timesteps)
    target = objective.target(latents, noise, timesteps)
    assert objective.loss(target, target, timesteps) == 0
    signal = objective.add_noise(torch.ones(5, 1, 1, 1), torch.zeros(5, 1, 1, 1), timesteps)
    share = objective.add_noise(torch.zeros(5, 1, 1, 1), torch.ones(5, 1, 1, 1), timesteps)
    if prediction_type == "epsilon":
        back = (noisy - share * target) / signal
    else:
        back = signal * noisy - share * target
    torch.testing.assert_close(back, latents, atol=2e-4, rtol=2e-4)


def test_min_snr_weights_have_their_closed_form() -> None:
    timesteps = torch.arange(1000)
    alphas = _scheduler().alphas_cumprod.double()
    snr = alphas / (1 - alphas)
    epsilon = Objective(_scheduler(), snr_gamma=5, device="cpu").weights(timesteps)
    torch.testing.assert_close(epsilon, (snr.clamp(max=5) / snr).float())
    velocity = Objective(_scheduler(prediction_type="v_prediction"), snr_gamma=5, device="cpu")
    torch.testing.assert_close(velocity.weights(timesteps), (snr.clamp(max=5) / (snr + 1)).float())
    plain = Objective(_scheduler(), snr_gamma=0, device="cpu").weights(timesteps)
    assert torch.equal(plain, torch.ones(1000))


@pytest.mark.parametrize(("prediction_type", "last"), [("epsilon", 1.0), ("v_prediction", 0.0)])
def test_a_schedule_that_ends_in_pure_noise_has_finite_weights(
    prediction_type: str, last: float
) -> None:
    scheduler = _scheduler(prediction_type=prediction_type, rescale_betas_zero_snr=True)
    weights = Objective(scheduler, snr_gamma=5, device="cpu").weights(torch.arange(1000))
    assert torch.isfinite(weights).all()
    assert weights[-1] == pytest.approx(last, abs=1e-6)


def test_the_loss_is_the_weighted_mean_square() -> None:
    objective = Objective(_scheduler(), snr_gamma=5, device="cpu")
    _, noise, timesteps = _tensors()
    errors = torch.arange(1.0, 6.0).view(5, 1, 1, 1).expand(SHAPE)
    loss = objective.loss(noise + errors, noise, timesteps)
    expected = (torch.arange(1.0, 6.0) ** 2 * objective.weights(timesteps)).mean()
    torch.testing.assert_close(loss, expected)


def test_an_unknown_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="sample"):
        Objective(_scheduler(prediction_type="sample"), snr_gamma=5, device="cpu")


def test_a_step_draws_the_same_however_the_run_came_to_it() -> None:
    def draw_step(step: int, micro_batch: int = 0) -> torch.Tensor:
        draws = draw(
            step_generator(3, step, micro_batch),
            SHAPE,
            num_timesteps=1000,
            caption_dropout=0.5,
        )
        assert int(draws.timesteps.min()) >= 0 and int(draws.timesteps.max()) < 1000
        assert draws.variants.min() >= 0 and draws.variants.max() < 1
        assert draws.captions.min() >= 0 and draws.captions.max() < 1
        return draws.noise

    first = draw_step(7)
    torch.rand(100)
    assert torch.equal(draw_step(7), first)
    assert not torch.equal(draw_step(8), first)
    assert not torch.equal(draw_step(7, 1), first)


def test_captions_are_dropped_as_often_as_said() -> None:
    def kept(share: float) -> float:
        generator = torch.Generator().manual_seed(0)
        draws = draw(generator, (4000, 1, 1, 1), num_timesteps=10, caption_dropout=share)
        return draws.keeps_caption.float().mean().item()

    assert kept(0) == 1
    assert kept(1) == 0
    assert kept(0.1) == pytest.approx(0.9, abs=0.02)


def test_seeds_of_different_purposes_differ() -> None:
    seeds = {derive_seed(0, "step", step, 0) for step in range(2000)}
    assert len(seeds) == 2000
    assert derive_seed(0, "deck", 0, 0) not in seeds
    assert derive_seed(1, "step", 0, 0) != derive_seed(0, "step", 0, 0)


def test_offset_noise_is_constant_over_a_picture() -> None:
    def noise(offset: float) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return draw(
            generator, SHAPE, num_timesteps=10, caption_dropout=0, noise_offset=offset
        ).noise

    offset = noise(0.5) - noise(0)
    assert offset.std() > 0.1
    torch.testing.assert_close(offset, offset[:, :, :1, :1].expand(SHAPE))
    torch.testing.assert_close(noise(1) - noise(0), 2 * offset)


def test_the_huber_loss_is_squared_near_zero_and_a_line_far_from_it() -> None:
    objective = Objective(_scheduler(), snr_gamma=0, device="cpu", huber_delta=0.1)
    _, noise, timesteps = _tensors()
    assert objective.loss(noise, noise, timesteps) == 0

    def at(error: float) -> float:
        return objective.loss(noise + error, noise, timesteps).item()

    assert at(1e-3) == pytest.approx(1e-6, rel=0.01)
    assert at(101) - at(100) == pytest.approx(0.2, rel=1e-3)
    assert at(0.3) == pytest.approx(0.2 * (math.sqrt(0.1) - 0.1), rel=1e-4)

"""How well what was learned carries over: the loss of pictures that are not learned from.

It is the same number for the same weights, however the run came to them: one variant and
one prompt of each picture, fixed noise, fixed timesteps spread over all noise levels, no
dropout. Nothing that the training draws from is touched.
"""

from __future__ import annotations

import math

import torch

from training_app.trainer.checkpoint import read_weights
from training_app.trainer.objective import Draws
from training_app.trainer.randomness import derive_seed
from training_app.trainer.training import Training

#: Noise levels at which each picture is looked at.
TIMESTEPS = 8


@torch.no_grad()
def held_out_loss(training: Training) -> float | None:
    """The mean loss of the held-out pictures with what the run has come to.

    Returns:
        ``None`` if no picture is held out, or the loss is not finite.
    """
    losses = []
    with training.learner.at_rest():
        for member in training.held_out:
            # As many at once as a step has here: that much memory there is.
            for chunk in _draws(training, member).chunks(training.own_share):
                losses.append(_losses(training, member, chunk))
    if not losses:
        return None
    loss = torch.stack(losses).sum().item() / (TIMESTEPS * len(training.held_out))
    return loss if math.isfinite(loss) else None


def _losses(training: Training, member: int, draws: Draws) -> torch.Tensor:
    """The sum of the losses of one picture at some timesteps, on the device."""
    count = len(draws.timesteps)
    predicted = training.predict(training.buckets[member], [member] * count, draws)
    return training.objective.loss(*predicted) * count


def _draws(training: Training, member: int) -> Draws:
    """What would be random: noise by picture and timestep, the first variant and prompt."""
    bucket, total = training.buckets[member], training.objective.num_timesteps
    shape = (TIMESTEPS, *training.latents.mean[bucket].shape[1:])
    generator = torch.Generator().manual_seed(
        derive_seed(training.config.seed, "validation", member)
    )
    return Draws(
        posterior_noise=torch.zeros(shape),
        noise=torch.randn(shape, generator=generator),
        timesteps=((torch.arange(TIMESTEPS) + 0.5) * total / TIMESTEPS).long(),
        variants=torch.zeros(TIMESTEPS),
        keeps_caption=torch.ones(TIMESTEPS, dtype=torch.bool),
        captions=torch.zeros(TIMESTEPS),
    )


def take_best(training: Training) -> None:
    """Goes back to the weights of the best checkpoint, if there is one and it was wanted.

    Raises:
        CorruptFileError: If its weights are damaged.
    """
    best = training.best
    if best is None or best.step == training.step:
        return
    weights = read_weights(best.folder, training.request, training.learner.parameters)
    training.learner.load(weights, weights)
    training.step = best.step

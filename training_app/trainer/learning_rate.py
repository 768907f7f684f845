"""How the learning rates go over a run: a warmup, then a shape."""

from __future__ import annotations

import math

from training_app.trainer.config import TrainingConfig


def learning_rate_factor(step: int, config: TrainingConfig) -> float:
    """Share of its peak that a learning rate has at a step, counted from 0.

    It rises in a line in the warmup; ``linear`` and ``cosine`` would reach zero one step
    after the last.
    """
    warmup = min(config.lr_warmup_steps, config.max_train_steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, config.max_train_steps - warmup)
    return {
        "constant": 1.0,
        "linear": 1 - progress,
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
    }[config.lr_scheduler]

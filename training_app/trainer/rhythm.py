"""How far apart the samples and the checkpoints of a run are.

Whoever chooses among checkpoints does it by their samples, so unless somebody asked otherwise the
checkpoints that are kept for choosing are steps that have samples.
"""

from __future__ import annotations

import math

#: How many checkpoints of a run are kept for choosing, at most.
CHOICES = 10


def sample_rhythm(max_train_steps: int, checkpoint_every_steps: int, choices: int) -> int:
    """Steps between samples when nobody asked: as many as fit the checkpoints.

    Args:
        max_train_steps: Of the run.
        checkpoint_every_steps: Steps between checkpoints; 0 if that was not asked for either.
        choices: How many times samples are made.
    """
    return _next_multiple(math.ceil(max_train_steps / choices), checkpoint_every_steps)


def checkpoint_rhythm(
    max_train_steps: int, sample_every_steps: int, checkpoint_every_steps: int
) -> int:
    """Steps between the checkpoints that are kept for choosing.

    Args:
        max_train_steps: Of the run.
        sample_every_steps: Steps between samples; 0 if they are made at the end only.
        checkpoint_every_steps: Steps between checkpoints if that was asked for, else 0.
    """
    every = max(1, math.ceil(max_train_steps / CHOICES))
    return checkpoint_every_steps or _next_multiple(every, sample_every_steps)


def _next_multiple(least: int, of: int) -> int:
    return math.ceil(least / of) * of if of else least

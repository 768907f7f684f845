"""How a run goes on after a fault: from its last checkpoint, more carefully.

A loss that is not finite halves the learning rate, at most twice. Memory that runs out
halves the micro-batch, once; as many micro-batches more make up one step, so that each
step sees as many pictures as before. What was changed is part of every later checkpoint, and the
same on all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from studio_project.child_protocol import ChildError, is_out_of_memory
from training_app.trainer.config import TrainingConfig
from training_app.trainer.reporting import Reporter

MAXIMUM_ROLLBACKS = 2


@dataclass(frozen=True)
class Adjustments:
    """What faults have changed about a run.

    Attributes:
        rollbacks: How often the learning rate was halved.
        batch_divisor: By how much micro-batches are smaller, and more of them in a step.
    """

    rollbacks: int = 0
    batch_divisor: int = 1

    @property
    def learning_rate_factor(self) -> float:
        """Share of the learning rate that is left."""
        return 0.5**self.rollbacks

    def micro_batches(self, config: TrainingConfig) -> tuple[int, int]:
        """Pictures per micro-batch, and micro-batches per step."""
        size = config.train_batch_size // self.batch_divisor
        return size, config.gradient_accumulation_steps * self.batch_divisor


def adjust(
    adjustments: Adjustments, error: BaseException, config: TrainingConfig
) -> Adjustments | None:
    """What to change after a fault, or ``None`` if the run cannot be helped."""
    if isinstance(error, ChildError) and error.code == "non_finite_loss":
        if adjustments.rollbacks < MAXIMUM_ROLLBACKS:
            return replace(adjustments, rollbacks=adjustments.rollbacks + 1)
    elif is_out_of_memory(error) and adjustments.batch_divisor == 1:
        size = config.train_batch_size // config.num_devices
        divisor = next((n for n in range(2, size + 1) if size % n == 0), None)
        if divisor is not None:
            return replace(adjustments, batch_divisor=divisor)
    return None


def tell(
    before: Adjustments, after: Adjustments, config: TrainingConfig, step: int, reporter: Reporter
) -> None:
    """Says in the timeline what a fault has changed, and from which step it goes on."""
    if after.rollbacks != before.rollbacks:
        rate = config.learning_rate * after.learning_rate_factor
        reporter.note("rolled_back", step=step, learning_rate=rate)
    else:
        size, count = after.micro_batches(config)
        reporter.note(
            "micro_batch_halved",
            step=step,
            train_batch_size=size,
            gradient_accumulation_steps=count,
        )

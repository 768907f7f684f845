"""Losses and speed: kept on the device while steps run, read and told a few times a second."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from studio_project.child_protocol import ChildError
from training_app.trainer.config import TrainingConfig
from training_app.trainer.learning_rate import learning_rate_at
from training_app.trainer.reporting import Reporter


class LossMeter:
    """Losses that were not read from the device yet, and what reading them told."""

    def __init__(self, config: TrainingConfig) -> None:
        """Starts to count the time.

        Args:
            config: For the learning rates and the batch size.
        """
        self._config = config
        self._waiting: list[torch.Tensor] = []
        self._read_at = time.monotonic()
        self.images_per_second = 0.0
        self.mean: float | None = None

    def add(self, loss: torch.Tensor) -> None:
        """Takes the loss of one more step, without looking at it."""
        self._waiting.append(loss)

    def tell(self, step: int, reporter: Reporter) -> None:
        """Reads what waits and tells the worker.

        Args:
            step: Optimizer steps done.
            reporter: Who is told.

        Raises:
            ChildError: ``non_finite_loss``; no such step has changed a weight.
        """
        if not self._waiting:
            return
        losses = torch.stack(self._waiting).tolist()
        first = step - len(losses)
        for number, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise ChildError("non_finite_loss", step=first + number + 1)
        now = time.monotonic()
        seconds = max(1e-6, now - self._read_at)
        self.images_per_second = len(losses) * self._config.effective_batch_size / seconds
        self.mean = sum(losses) / len(losses)
        self._waiting, self._read_at = [], now
        rates = [learning_rate_at(first + number, self._config) for number in range(len(losses))]
        reporter.progress(
            "step",
            step=step,
            total_steps=self._config.max_train_steps,
            loss=self.mean,
            learning_rate=rates[-1],
            images_per_second=self.images_per_second,
            history=[[first + n + 1, losses[n], rates[n]] for n in range(len(losses))],
        )

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves time that is not spent on steps out of the speed."""
        started_at = time.monotonic()
        yield
        self._read_at += time.monotonic() - started_at

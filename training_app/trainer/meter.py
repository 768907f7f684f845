"""Losses and speed: kept on the device while steps run, read and told a few times a second."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from studio_project.child_protocol import ChildError
from training_app.trainer.config import TrainingConfig
from training_app.trainer.reporting import Reporter
from training_app.trainer.training import StepResult


class LossMeter:
    """Losses that were not read from the device yet, and what reading them told."""

    def __init__(self, config: TrainingConfig) -> None:
        """Starts to count the time.

        Args:
            config: For the batch size and the length of the run.
        """
        self._config = config
        self._waiting: list[StepResult] = []
        self._read_at = time.monotonic()
        self.images_per_second = 0.0
        self.mean: float | None = None

    def add(self, result: StepResult) -> None:
        """Takes what one more step tells, without looking at it."""
        self._waiting.append(result)

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
        losses, norms = torch.stack(
            [torch.stack(numbers) for numbers in zip(*(r[:2] for r in self._waiting), strict=True)]
        ).tolist()
        first = step - len(losses)
        for number, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise ChildError("non_finite_loss", step=first + number + 1)
        now = time.monotonic()
        seconds = max(1e-6, now - self._read_at)
        self.images_per_second = len(losses) * self._config.effective_batch_size / seconds
        self.mean = sum(losses) / len(losses)
        rates = [result.learning_rate for result in self._waiting]
        self._waiting, self._read_at = [], now
        reporter.progress(
            "step",
            step=step,
            total_steps=self._config.max_train_steps,
            loss=self.mean,
            learning_rate=rates[-1],
            images_per_second=self.images_per_second,
            history=[
                # A gradient that overflows in fp16 is skipped and has no norm.
                [first + n + 1, losses[n], rates[n], norms[n] if math.isfinite(norms[n]) else None]
                for n in range(len(losses))
            ],
        )

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves time that is not spent on steps out of the speed."""
        started_at = time.monotonic()
        yield
        self._read_at += time.monotonic() - started_at

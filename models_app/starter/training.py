"""What both training stages share: a resumable run with averaged weights.

A run's randomness depends on the seed and the number of the step alone, and a
checkpoint holds weights, averages and the optimizer. A run that was stopped and
resumed therefore ends with the very numbers of a run that never stopped (on one
machine with one thread count). Checkpoints are safetensors files, replaced whole.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

Network = TypeVar("Network", bound=torch.nn.Module)

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_CHECKPOINTS = 120.0
SECONDS_BETWEEN_REPORTS = 30.0


def place(network: Network, device: torch.device) -> Network:
    """Move a network to a device and return it."""
    torch.nn.Module.to(network, device)
    return network


def best_device() -> torch.device:
    """A GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def generators(
    seed: int, step: int, device: torch.device
) -> tuple[np.random.Generator, torch.Generator]:
    """The numpy and torch randomness of one step, independent of every other step's."""
    mixed = int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0] >> 1)
    return np.random.default_rng((seed, step)), torch.Generator(device).manual_seed(mixed)


def cosine_with_warmup(step: int, max_steps: int, peak: float, warmup_steps: int = 200) -> float:
    """A linear rise, then half a cosine down to a hundredth of the peak."""
    warmup_steps = min(warmup_steps, max(1, max_steps // 10))
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


class TrainingRun:
    """Networks under training with their optimizer, averages and checkpoint.

    Args:
        path: The checkpoint file; a run that finds it goes on from there.
        networks: The networks by name.
        seed: Seed of every step's randomness.
        peak_learning_rate: Highest learning rate of the cosine.
        ema_decay: Decay of the exponential moving average of the weights.

    Attributes:
        step: Number of optimizer steps done.
        seconds: Time spent in steps, over all resumptions.
    """

    def __init__(
        self,
        path: Path,
        networks: dict[str, torch.nn.Module],
        *,
        seed: int,
        peak_learning_rate: float,
        ema_decay: float = 0.999,
    ) -> None:
        self.path = path
        self.networks = networks
        self.seed = seed
        self.peak_learning_rate = peak_learning_rate
        self.ema_decay = ema_decay
        self.step = 0
        self.seconds = 0.0
        self.parameters = {
            f"{name}.{key}": parameter
            for name, network in networks.items()
            for key, parameter in network.named_parameters()
        }
        self.device = next(iter(self.parameters.values())).device
        self.averages = {
            key: parameter.detach().clone() for key, parameter in self.parameters.items()
        }
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=peak_learning_rate, weight_decay=0.01, fused=True
        )
        if path.exists():
            self._load()

    def train(
        self,
        max_steps: int,
        loss_of_step: Callable[[np.random.Generator, torch.Generator], torch.Tensor],
        on_checkpoint: Callable[[], None] | None = None,
    ) -> None:
        """Step until ``max_steps`` are done, with a checkpoint every two minutes and at the end.

        Args:
            max_steps: The run's whole length, earlier steps counted in.
            loss_of_step: Makes the loss of one step from that step's randomness.
            on_checkpoint: Called after each checkpoint on the way.

        Raises:
            FloatingPointError: If the loss is no longer a number.
        """
        saved = reported = time.monotonic()
        while self.step < max_steps:
            began = time.monotonic()
            loss = self._step(max_steps, loss_of_step)
            now = time.monotonic()
            self.seconds += now - began
            if now - reported > SECONDS_BETWEEN_REPORTS or self.step == max_steps:
                reported = now
                self._report(loss.item(), max_steps)
            if now - saved > SECONDS_BETWEEN_CHECKPOINTS and self.step < max_steps:
                self.save()
                if on_checkpoint is not None:
                    on_checkpoint()
                saved = time.monotonic()
        self.save()

    def _step(
        self,
        max_steps: int,
        loss_of_step: Callable[[np.random.Generator, torch.Generator], torch.Tensor],
    ) -> torch.Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = cosine_with_warmup(self.step, max_steps, self.peak_learning_rate)
        rng, generator = generators(self.seed, self.step, self.device)
        loss = loss_of_step(rng, generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        # The average follows fast at first, or it would remember the random start.
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            parameters: list[torch.Tensor] = list(self.parameters.values())
            torch._foreach_lerp_(list(self.averages.values()), parameters, 1 - decay)
        return loss.detach()

    def _report(self, loss: float, max_steps: int) -> None:
        if not math.isfinite(loss):
            raise FloatingPointError(f"{self.path.stem}: the loss is {loss} at step {self.step}")
        pace = self.seconds / self.step
        minutes_left = (max_steps - self.step) * pace / 60
        logger.info(
            "%s step %d/%d loss %.4f, %.3f s/step, %.0f min left",
            *(self.path.stem, self.step, max_steps, loss, pace, minutes_left),
        )

    def swap_averages(self) -> None:
        """Exchange the networks' weights with their averages; a second call undoes it."""
        with torch.no_grad():
            for key, parameter in self.parameters.items():
                current = parameter.detach().clone()
                parameter.copy_(self.averages[key])
                self.averages[key].copy_(current)

    def save(self) -> None:
        """Write the checkpoint aside and put it in place in one move."""
        tensors = {f"weights.{key}": value.detach() for key, value in self.parameters.items()}
        tensors |= {f"averages.{key}": value for key, value in self.averages.items()}
        for key, parameter in self.parameters.items():
            for name, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{name}.{key}"] = value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {"step": self.step, "seconds": self.seconds}
        aside = self.path.with_suffix(".part")
        save_file(
            {key: value.contiguous() for key, value in tensors.items()},
            aside,
            {"state": json.dumps(state)},
        )
        aside.replace(self.path)

    def _load(self) -> None:
        with safe_open(self.path, "pt", device=str(self.device)) as file, torch.no_grad():
            state = json.loads(file.metadata()["state"])
            stored = set(file.keys())
            for key, parameter in self.parameters.items():
                parameter.copy_(file.get_tensor(f"weights.{key}"))
                self.averages[key].copy_(file.get_tensor(f"averages.{key}"))
                self.optimizer.state[parameter] = {
                    name: file.get_tensor(f"optimizer.{name}.{key}")
                    for name in ("step", "exp_avg", "exp_avg_sq")
                    if f"optimizer.{name}.{key}" in stored
                }
        self.step, self.seconds = state["step"], state["seconds"]

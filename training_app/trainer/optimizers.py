"""From gradients to new weights: gradient scaling, clipping, and the optimizers there are.

An update with a gradient that is not finite never happens. The state of any of the
optimizers can be taken out as tensors and plain numbers and put back exactly.

Sources: Loshchilov & Hutter 2017 (arXiv:1711.05101) for AdamW; Dettmers et al. 2021
(arXiv:2110.02861) for 8-bit states; Mishchenko & Defazio 2023 (arXiv:2306.06101) for Prodigy;
Shazeer & Stern 2018 (arXiv:1804.04235) for Adafactor; Micikevicius et al. 2017
(arXiv:1710.03740) section 3.2 for loss scaling.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from training_app.trainer.config import TrainingConfig
from training_app.trainer.fields import require_package

#: A group's settings that the learning rate's schedule decides, not the optimizer.
_SCHEDULED = ("lr", "peak_learning_rate")
#: A gradient scaler that had to come below this does not find a scale that fits.
SMALLEST_SCALE = 1.0


@dataclass(frozen=True)
class OptimizerState:
    """What an optimizer and its gradient scaler know between two steps.

    Attributes:
        tensors: By ``<kind>/<name of the parameter>``.
        numbers: Everything else, as JSON holds it: ``parameters`` by the same names,
            ``groups`` a table for each, ``scaler`` if there is one.
    """

    tensors: Mapping[str, torch.Tensor]
    numbers: Mapping[str, Any]


def build_optimizer(
    config: TrainingConfig, groups: Sequence[Mapping[str, Any]]
) -> torch.optim.Optimizer:
    """Makes the optimizer that a configuration asks for.

    Args:
        config: The optimizer's name, its learning rate and its weight decay.
        groups: ``params``, ``lr`` and ``peak_learning_rate`` of each. Prodigy finds one rate
            for all, so it gets them as one group with the configuration's rate;
            :class:`WeightUpdate` lets those with another rate go their share of the way.

    Raises:
        ConfigError: ``not_installed`` if the optimizer's package is missing.
    """
    tables, decay = [dict(group) for group in groups], config.weight_decay
    if config.optimizer == "adamw8bit":
        require_package("optimizer", "bitsandbytes")
        eight_bit: Any = importlib.import_module("bitsandbytes.optim").AdamW8bit
        return eight_bit(tables, weight_decay=decay)  # type: ignore[no-any-return]
    if config.optimizer == "prodigy":
        require_package("optimizer", "prodigyopt")
        prodigy: Any = importlib.import_module("prodigyopt").Prodigy
        rate = config.learning_rate
        together = [parameter for table in tables for parameter in table["params"]]
        return prodigy(  # type: ignore[no-any-return]
            [{"params": together, "lr": rate, "peak_learning_rate": rate}],
            weight_decay=decay,
            use_bias_correction=True,
            safeguard_warmup=True,
        )
    if config.optimizer == "adafactor":
        # The rate is multiplied by the size of the weights, but at least by the second eps: 1
        # makes it the rate itself, without which adapters that begin at zero would stay there.
        return torch.optim.Adafactor(tables, weight_decay=decay, eps=(None, 1.0))
    return torch.optim.AdamW(tables, weight_decay=decay, fused=True)


class WeightUpdate:
    """The second half of a step: what happens once the gradients are there."""

    def __init__(
        self,
        config: TrainingConfig,
        groups: Sequence[Mapping[str, Any]],
        *,
        dtype: torch.dtype,
        device: str,
    ) -> None:
        """Makes the optimizer, and a gradient scaler if fp16 needs one.

        Args:
            config: The run's settings.
            groups: As for :func:`build_optimizer`.
            dtype: What the networks compute in.
            device: Where they are.

        Raises:
            ConfigError: ``not_installed`` if the optimizer's package is missing.
        """
        self.optimizer = build_optimizer(config, groups)
        self._weights = [weight for group in groups for weight in group["params"]]
        self._shares: list[tuple[list[torch.Tensor], float]] = []
        if config.optimizer == "prodigy":
            for group in groups:
                share = group["peak_learning_rate"] / config.learning_rate
                if share != 1:
                    self._shares.append(([weight.data for weight in group["params"]], share))
        self._max_grad_norm = config.max_grad_norm
        self._is_fused, self._is_prodigy = (
            config.optimizer == name for name in ("adamw", "prodigy")
        )
        self._scaler = torch.amp.GradScaler(
            torch.device(device).type, enabled=dtype == torch.float16
        )

    def set_rate(self, factor: float) -> float:
        """Sets every group's learning rate to a share of its peak.

        Returns:
            That of the first group; with Prodigy times the rate that it has found.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_learning_rate"] * factor
        first: dict[str, Any] = self.optimizer.param_groups[0]
        return float(first["lr"] * (first["d"] if self._is_prodigy else 1))

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss as it shall be differentiated: fp16 gradients must not vanish."""
        return self._scaler.scale(loss)

    def gradients(self) -> list[torch.Tensor]:
        """The gradients that there are, in the order of the weights."""
        return [weight.grad for weight in self._weights if weight.grad is not None]

    def apply(self) -> torch.Tensor:
        """Clips, applies and forgets the gradients; if one is not finite, no weight changes.

        Returns:
            The gradients' norm before clipping, on the device.
        """
        self._scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm(self.gradients())
        if self._max_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(self._weights, self._max_grad_norm, norm)
        if self._scaler.is_enabled():
            # It has seen the gradients before they were clipped and skips what overflowed.
            with self._shared_ways():
                self._scaler.step(self.optimizer)
            self._scaler.update()
        elif self._is_fused:
            # Read on the device; the host learns of it from the loss.
            self.optimizer.found_inf = torch.isfinite(norm).logical_not().float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif torch.isfinite(norm):
            # These have no such switch, and most of them wait for the device anyway.
            with self._shared_ways():
                self.optimizer.step()
        self.forget()
        return norm

    @contextmanager
    def _shared_ways(self) -> Iterator[None]:
        """Lets weights with a rate of their own go only that share of what all go inside."""
        before = [[weight.clone() for weight in weights] for weights, _share in self._shares]
        yield
        for (weights, share), starts in zip(self._shares, before, strict=True):
            torch._foreach_lerp_(weights, starts, 1 - share)

    def forget(self) -> None:
        """Drops the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def fault(self, norm: torch.Tensor) -> torch.Tensor:
        """Zero, or not a number if the last update failed for good; on the device.

        A gradient that overflows in fp16 is no fault: the scaler tries a smaller scale.
        """
        if not self._scaler.is_enabled():
            return 0 * norm
        scale = self._scaler.scale(torch.ones_like(norm))
        return torch.where(scale < SMALLEST_SCALE, torch.nan, 0.0)

    def state(self, parameters: Mapping[str, torch.Tensor]) -> OptimizerState:
        """What to keep of the optimizer and the scaler.

        Args:
            parameters: What learns, by name.
        """
        entries = {
            f"{kind}/{name}": value
            for name, parameter in parameters.items()
            for kind, value in self.optimizer.state.get(parameter, {}).items()
        }
        numbers: dict[str, Any] = {
            "parameters": {key: value for key, value in entries.items() if _is_number(value)},
            "groups": [
                {
                    name: value
                    for name, value in group.items()
                    if name not in _SCHEDULED and _is_number(value)
                }
                for group in self.optimizer.param_groups
            ],
        }
        if self._scaler.is_enabled():
            numbers["scaler"] = self._scaler.state_dict()
        tensors = {k: value for k, value in entries.items() if isinstance(value, torch.Tensor)}
        return OptimizerState(tensors, numbers)

    def restore(self, parameters: Mapping[str, torch.Tensor], saved: OptimizerState) -> None:
        """Gives the optimizer the state of another of the same kind and parameters.

        Raises:
            KeyError: If the state names other parameters.
        """
        self.optimizer.state.clear()
        for key, value in (*saved.tensors.items(), *saved.numbers["parameters"].items()):
            kind, name = key.split("/", 1)
            parameter = parameters[name]
            if isinstance(value, torch.Tensor):
                # An optimizer that is not fused counts its steps on the host.
                is_on_host = kind == "step" and not self._is_fused
                value = value.clone().to("cpu" if is_on_host else parameter.device)
            self.optimizer.state[parameter][kind] = value
        for group, table in zip(self.optimizer.param_groups, saved.numbers["groups"], strict=True):
            group.update(table)
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(saved.numbers["scaler"])


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)

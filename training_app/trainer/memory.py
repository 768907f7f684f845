"""Whether a training fits its device or its share of it, found out by trying, before it begins."""

from __future__ import annotations

import resource
import sys
from typing import Any, Protocol

import torch

from models_app.device_memory import free_memory
from studio_project.child_protocol import is_out_of_memory
from training_app.trainer.reporting import logger

#: Share of the device's free memory that a step may take: allocators leave gaps.
USABLE_SHARE = 0.92
#: Bytes of optimizer state for each byte of what learns; it comes with the first step.
STATE_SHARE = 2


class Rehearsing(Protocol):
    """The part of ``training.Training`` that is tried here."""

    learner: Any

    def rehearse(self) -> None:
        """Does what needs most memory in a step, and changes nothing."""


def settle_checkpointing(training: Rehearsing, wish: str, device: str) -> bool:
    """Turns gradient checkpointing on if it was asked for, or if a step does not fit without.

    Args:
        training: What shall be trained; a step of it is rehearsed on a GPU for ``auto``.
        wish: ``on``, ``off`` or ``auto``.
        device: Where it runs; on a CPU ``auto`` is off.

    Returns:
        Whether it is on.
    """
    is_on = wish == "on" or (
        wish == "auto" and device.startswith("cuda") and not _fits(training, device)
    )
    if is_on:
        training.learner.save_memory()
        logger.info("activations are computed twice to save memory")
    return is_on


def _fits(training: Rehearsing, device: str) -> bool:
    needed = _peak_bytes(training, device)
    return needed is not None and needed <= USABLE_SHARE * _available_bytes(device)


def _peak_bytes(training: Rehearsing, device: str) -> int | None:
    """What a step takes at its peak, or ``None`` if it broke off for want of memory."""
    learning = sum(p.numel() * p.element_size() for p in training.learner.parameters.values())
    torch.cuda.reset_peak_memory_stats(device)
    try:
        training.rehearse()
        peak: int = torch.cuda.max_memory_allocated(device)
    except (RuntimeError, MemoryError) as exc:
        if not is_out_of_memory(exc):
            raise
        return None
    finally:
        free_memory()
        # What was only tried shall not be told as what the run holds.
        torch.cuda.reset_peak_memory_stats(device)
    return peak + STATE_SHARE * learning


def keep_to(device: str, memory_bytes: int) -> None:
    """Lets this process run out of memory beyond its share of a GPU, so that others have theirs.

    Args:
        device: Where it runs.
        memory_bytes: Its share; 0 for all there is.
    """
    if memory_bytes and device.startswith("cuda"):
        total: int = torch.cuda.mem_get_info(device)[1]
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory_bytes / total), device)


def _available_bytes(device: str) -> int:
    """The device's memory that is free or ours already, within our share."""
    free, total = torch.cuda.mem_get_info(device)
    share = int(torch.cuda.get_per_process_memory_fraction(device) * total)
    return min(free + torch.cuda.memory_allocated(device), share)


def peak_memory_bytes(device: str) -> int:
    """The most memory that was held: of the GPU, else of this process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    # macOS counts in bytes, Linux in KiB.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

"""Giving memory back, on whichever device; torch, no Django."""

from __future__ import annotations

import gc

import torch


def free_memory() -> None:
    """Gives back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

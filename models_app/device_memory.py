"""Memory that runs out, on whichever device: how an error says so, and how the rest is given back.

torch, no Django; the trainer and the engine answer it in ways of their own.
"""

from __future__ import annotations

import gc

import torch

# The CPU's allocator and CUDA's libraries have no exception class of their own.
_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def free_memory() -> None:
    """Gives back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

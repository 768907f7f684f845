"""Memory that runs out, on whichever device: how an error says so, and how the rest is given back.

torch, no Django; the trainer and the engine answer it in ways of their own.
"""

from __future__ import annotations

import gc

import torch

from studio_project.child_protocol import OUT_OF_MEMORY_WORDS


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # The CPU's allocator and CUDA's libraries have no exception class of their own.
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in OUT_OF_MEMORY_WORDS
    )


def free_memory() -> None:
    """Gives back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

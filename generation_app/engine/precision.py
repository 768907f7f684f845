"""Where half precision is not enough."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def without_overflow(vae: Any) -> Iterator[None]:
    """Lets a VAE compute in fp32 for a while, if in fp16 it would overflow.

    SDXL's does, and says so in its configuration (``force_upcast``).
    """
    overflows = vae.dtype == torch.float16 and vae.config.get("force_upcast", False)
    if overflows:
        vae.to(dtype=torch.float32)
    try:
        yield
    finally:
        if overflows:
            vae.to(dtype=torch.float16)

"""Keeps base pipelines warm: an LRU by content hash within a budget of bytes.

A pipeline is loaded once and stays until the budget needs its place or the worker asks for
everything back. It carries what belongs to it: its adapters, its prompt embeddings and how its
latents look as colours. Loading itself is done by ``models_app.loading``.
"""

from __future__ import annotations

import gc
import math
import os
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from generation_app.engine.adapters import AdapterSet
from generation_app.engine.errors import EngineError
from generation_app.engine.prompts import PromptCache
from models_app.inspection import InspectionError, read_header
from models_app.loading import LoadingError, load_pipeline

# Left for activations, and for the other child of the same worker.
_SHARE_OF_DEVICE = 0.6
_SHARE_OF_RAM = 0.5


@dataclass
class WarmPipeline:
    """A loaded base model and what is kept with it."""

    pipe: Any
    architecture: str
    sha256: str
    name: str
    base_bytes: int
    adapters: AdapterSet
    prompts: PromptCache = field(default_factory=PromptCache)
    # Latents to colours, fitted when the first preview needs it (see ``preview``).
    projection: torch.Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        device: torch.device = self.pipe.unet.device
        return device

    @property
    def size_bytes(self) -> int:
        """Everything it holds in memory."""
        return self.base_bytes + self.adapters.size_bytes + self.prompts.size_bytes


class PipelineCache:
    """The warm pipelines of one engine; ``loads`` counts how often one was read from disk."""

    def __init__(self, budget_bytes: int | None = None) -> None:
        self._budget_bytes = budget_bytes
        self._warm: OrderedDict[tuple[str, str], WarmPipeline] = OrderedDict()
        self.loads = 0

    @property
    def names(self) -> list[str]:
        """The names of the warm models, longest unused first."""
        return [warm.name for warm in self._warm.values()]

    @property
    def hashes(self) -> list[str]:
        """The hashes of the warm models, longest unused first."""
        return [warm.sha256 for warm in self._warm.values()]

    @property
    def size_bytes(self) -> int:
        """What all warm pipelines hold."""
        return sum(warm.size_bytes for warm in self._warm.values())

    def find(self, sha256: str, device: str) -> WarmPipeline | None:
        """Return a pipeline if it is warm, and mark it as used."""
        warm = self._warm.get((sha256, device))
        if warm is not None:
            self._warm.move_to_end((sha256, device))
        return warm

    def load(
        self, folder: Path, *, sha256: str, architecture: str, device: str, name: str
    ) -> WarmPipeline:
        """Read a base model from disk, making room for it first.

        Args:
            folder: Its diffusers folder.
            sha256: Its content hash, by which it is known.
            architecture: Its family.
            device: Where it shall compute.
            name: What people call it.

        Raises:
            EngineError: ``model_unavailable`` if the folder is gone or unreadable.
        """
        budget = self._budget_bytes or default_budget_bytes(device)
        dtype = compute_dtype(device)
        try:
            self._make_room(budget - _weights_bytes(folder, dtype))
            pipe = load_pipeline(folder, architecture, dtype=dtype, device=device)
        except (LoadingError, InspectionError, OSError, ValueError) as error:
            raise EngineError("model_unavailable", name=name) from error
        self.loads += 1
        warm = WarmPipeline(
            pipe=pipe,
            architecture=architecture,
            sha256=sha256,
            name=name,
            base_bytes=_pipeline_bytes(pipe),
            adapters=AdapterSet(pipe, architecture),
        )
        self._warm[sha256, device] = warm
        self._make_room(budget, keep=(sha256, device))
        return warm

    def drop(self, warm: WarmPipeline) -> None:
        """Let go of one pipeline."""
        self._warm = OrderedDict((k, w) for k, w in self._warm.items() if w is not warm)
        free_memory()

    def clear(self) -> None:
        """Let go of everything."""
        self._warm.clear()
        free_memory()

    def _make_room(self, budget: int, keep: tuple[str, str] | None = None) -> None:
        dropped = False
        for key in list(self._warm):
            if self.size_bytes <= budget:
                break
            if key != keep:
                del self._warm[key]
                dropped = True
        if dropped:
            free_memory()


def compute_dtype(device: str) -> torch.dtype:
    """Return the type to compute in: fp32 on a CPU, bf16 on a GPU that has it, else fp16."""
    kind = torch.device(device).type
    if kind == "cpu":
        return torch.float32
    if kind == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return torch.float16


def default_budget_bytes(device: str) -> int:
    """Return how much of a device's memory warm pipelines may hold."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory * _SHARE_OF_DEVICE)
    return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * _SHARE_OF_RAM)


def free_memory() -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _weights_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Return what the weights of a folder will hold once loaded, from their headers alone."""
    headers = [read_header(file) for file in folder.glob("*/*.safetensors")]
    values = sum(math.prod(x.shape) for header in headers for x in header.tensors.values())
    return values * dtype.itemsize


def _pipeline_bytes(pipe: Any) -> int:
    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return sum(
        tensor.nbytes
        for network in networks
        for tensor in (*network.parameters(), *network.buffers())
    )

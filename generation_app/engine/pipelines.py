"""Keeps base pipelines warm: an LRU by content hash within a budget of bytes.

A pipeline is loaded once and stays until the budget needs its place or the worker asks for
everything back. It carries what belongs to it: its adapters, its prompt embeddings, how its latents
look as colours, and how sparing it has to be. One that the device cannot hold as a whole is loaded
into RAM. Loading itself is done by ``models_app.loading``.
"""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from generation_app.engine.adapters import AdapterSet
from generation_app.engine.errors import EngineError
from generation_app.engine.footprint import Need, choose_measures
from generation_app.engine.prompts import PromptCache
from generation_app.engine.thrift import Thrift
from models_app.device_memory import free_memory
from models_app.inspection import InspectionError, read_header
from models_app.loading import LoadingError, load_pipeline
from studio_project.child_protocol import is_out_of_memory

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
    thrift: Thrift
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
        self,
        folder: Path,
        *,
        sha256: str,
        architecture: str,
        device: str,
        name: str,
        need: Need,
        room: int | None = None,
    ) -> WarmPipeline:
        """Read a base model from disk, making room for it first.

        Args:
            folder: Its diffusers folder.
            sha256: Its content hash, by which it is known.
            architecture: Its family.
            device: Where it shall compute.
            name: What people call it.
            need: How large the request is that it is loaded for.
            room: Bytes of the device that there are for it; None if nobody knows.

        Raises:
            EngineError: ``model_unavailable`` if the folder is gone or unreadable.
        """
        budget = self._budget_bytes or default_budget_bytes(device)
        dtype = compute_dtype(device)
        try:
            weights = _weights_bytes(folder, dtype)
            self._make_room(budget - sum(weights.values()))
            in_turn = room is not None and (
                choose_measures(architecture, weights, need, room, dtype.itemsize).in_turn
            )
            pipe = None if in_turn else _load(folder, architecture, dtype, device)
            if pipe is None:
                in_turn, pipe = True, load_pipeline(folder, architecture, dtype=dtype)
        except (LoadingError, InspectionError, OSError, ValueError) as error:
            raise EngineError("model_unavailable", name=name) from error
        self.loads += 1
        key = (sha256, device)
        warm = WarmPipeline(
            pipe=pipe,
            architecture=architecture,
            sha256=sha256,
            name=name,
            base_bytes=_pipeline_bytes(pipe),
            adapters=AdapterSet(pipe, architecture),
            thrift=Thrift(
                pipe,
                architecture,
                device,
                in_turn=in_turn,
                make_room=lambda: self._make_room(0, keep=key),
            ),
        )
        self._warm[key] = warm
        self._make_room(budget, keep=key)
        return warm

    def drop(self, warm: WarmPipeline) -> None:
        """Let go of one pipeline."""
        self._warm = OrderedDict((k, w) for k, w in self._warm.items() if w is not warm)
        free_memory()

    def clear(self) -> None:
        """Let go of everything."""
        self._warm.clear()
        free_memory()

    def _make_room(self, budget: int, keep: tuple[str, str] | None = None) -> bool:
        """Let go of the longest unused until the budget is kept; returns whether any went."""
        dropped = False
        for key in list(self._warm):
            if self.size_bytes <= budget:
                break
            if key != keep:
                del self._warm[key]
                dropped = True
        if dropped:
            free_memory()
        return dropped


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


def take_room(device: str, memory_bytes: int) -> int | None:
    """Keep to a share of a device's memory, and return how much of it is there; None: unknown.

    Beyond its share this process runs out of memory, so that a training beside it has its own.

    Args:
        device: ``cpu``, ``cuda:0``, ``mps``.
        memory_bytes: What the worker leaves to it; 0 if that is no question.
    """
    if torch.device(device).type != "cuda":
        return memory_bytes or None
    free, total = torch.cuda.mem_get_info(device)
    share = min(1.0, memory_bytes / total) if memory_bytes else 1.0
    torch.cuda.set_per_process_memory_fraction(share, device)
    room = free + torch.cuda.memory_reserved(device)
    return min(room, memory_bytes) if memory_bytes else room


def _load(folder: Path, architecture: str, dtype: torch.dtype, device: str) -> Any:
    """Load a pipeline onto a device; None if that has no room for it."""
    try:
        return load_pipeline(folder, architecture, dtype=dtype, device=device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    free_memory()
    return None


def _weights_bytes(folder: Path, dtype: torch.dtype) -> dict[str, int]:
    """Return what each component of a folder will hold once loaded, from its header alone."""
    found: dict[str, int] = {}
    for file in folder.glob("*/*.safetensors"):
        values = sum(math.prod(tensor.shape) for tensor in read_header(file).tensors.values())
        component = file.parent.name
        found[component] = found.get(component, 0) + values * dtype.itemsize
    return found


def _pipeline_bytes(pipe: Any) -> int:
    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return sum(
        tensor.nbytes
        for network in networks
        for tensor in (*network.parameters(), *network.buffers())
    )

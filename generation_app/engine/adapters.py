"""LoRA adapters on a warm pipeline: each file loaded once, switched without touching the base.

An adapter is known by the SHA-256 of its file. Those used last stay attached, switched off, within
a bound of number and bytes; the longest unused goes first. Asking for the set that is already at
work costs nothing. Files of every layout are read by ``models_app.adapter_loading``, which refuses
what does not fit as a whole; what an adapter does to the picture is left to peft. Here a guard
stands before that: the header is checked before a library opens the file, and a LoRA of another
family is refused by name.
"""

from __future__ import annotations

import sys
import traceback
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from generation_app.engine.errors import EngineError
from models_app.adapter_loading import (
    Adapter,
    AdapterError,
    layer_names,
    peft_layers,
    put_on,
    read_adapter,
    wear,
    worn_by,
)
from models_app.architectures import get_architecture
from models_app.inspection import InspectionError, inspect_adapter, sha256_of
from studio_project.child_protocol import is_out_of_memory

DEFAULT_MAX_ADAPTERS = 24
DEFAULT_MAX_BYTES = 1024**3


@dataclass(frozen=True)
class LoraFile:
    """One LoRA that a request wants."""

    path: Path
    sha256: str
    weight: float
    name: str


@dataclass(frozen=True)
class _Attached:
    adapter: str
    size_bytes: int
    in_text_encoder: bool


class AdapterSet:
    """The adapters of one pipeline.

    ``loads`` and ``switches`` count what was done, for metrics and tests.
    """

    def __init__(
        self,
        pipe: Any,
        architecture: str,
        *,
        max_adapters: int = DEFAULT_MAX_ADAPTERS,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        self._pipe = pipe
        self._architecture = architecture
        self._layer_names = layer_names(pipe)
        self._layers: list[Any] = []
        self._max_adapters = max_adapters
        self._max_bytes = max_bytes
        self._attached: OrderedDict[str, _Attached] = OrderedDict()
        # None: unknown (a switch failed half-way), so the next request must switch.
        self._active: tuple[tuple[str, float], ...] | None = ()
        self.loads = 0
        self.switches = 0

    @property
    def size_bytes(self) -> int:
        """What all attached adapters hold."""
        return sum(entry.size_bytes for entry in self._attached.values())

    @property
    def attached(self) -> list[str]:
        """The hashes of the attached adapters, longest unused first."""
        return list(self._attached)

    @property
    def text_encoder_key(self) -> tuple[tuple[str, float], ...]:
        """What prompt embeddings depend on: the active adapters that reach a text encoder."""
        active = self._active or ()
        return tuple(entry for entry in active if self._attached[entry[0]].in_text_encoder)

    def activate(self, loras: Sequence[LoraFile]) -> None:
        """Put exactly these adapters to work.

        Args:
            loras: The adapters, in order; none switches all off.

        Raises:
            EngineError: ``model_unavailable`` if a file is missing or not what it was,
                ``model_incompatible`` if it does not fit this base.
        """
        wanted = tuple((lora.sha256, lora.weight) for lora in loras)
        if len({sha256 for sha256, _ in wanted}) < len(wanted):
            raise EngineError("invalid_request", field="loras")
        if wanted == self._active:
            for sha256, _ in wanted:
                self._attached.move_to_end(sha256)
            return
        self._active = None
        for lora in loras:
            if lora.sha256 in self._attached:
                self._attached.move_to_end(lora.sha256)
            else:
                self._attached[lora.sha256] = self._attach(lora)
        self._detach_surplus(keep={sha256 for sha256, _ in wanted})
        self._switch(wanted)
        self._active = wanted

    def _switch(self, wanted: Sequence[tuple[str, float]]) -> None:
        self.switches += 1
        wear(self._layers, {self._attached[sha256].adapter: weight for sha256, weight in wanted})

    def _attach(self, lora: LoraFile) -> _Attached:
        _check_file(lora, self._architecture)
        name = f"lora_{lora.sha256[:32]}"
        try:
            adapter = read_adapter(lora.path, self._layer_names)
            put_on(self._pipe, adapter, name)
        except AdapterError as error:
            self._remove(name)
            raise EngineError("model_incompatible", name=lora.name, reason=error.reason) from error
        except (OSError, SafetensorError, RuntimeError, ValueError, MemoryError) as error:
            self._remove(name)
            if is_out_of_memory(error):
                raise
            # The libraries raise many kinds here; all others mean that the file does not fit.
            traceback.print_exc(file=sys.stderr)
            raise EngineError("model_incompatible", name=lora.name) from error
        self.loads += 1
        self._layers = peft_layers(self._pipe)
        return _Attached(name, self._bytes_of(name), _reaches_text(adapter))

    def _bytes_of(self, name: str) -> int:
        return sum(
            tensor.nbytes
            for _component, _layer, module in worn_by(self._pipe, name)
            for kind in module.adapter_layer_names
            if name in getattr(module, kind, {})
            for tensor in _tensors(getattr(module, kind)[name])
        )

    def _detach_surplus(self, keep: set[str]) -> None:
        for sha256 in list(self._attached):
            is_full = len(self._attached) > self._max_adapters or self.size_bytes > self._max_bytes
            if not is_full:
                return
            if sha256 not in keep:
                self._remove(self._attached.pop(sha256).adapter)

    def _remove(self, adapter: str) -> None:
        """Take an adapter off every network, also one that was attached only in part."""
        self._pipe.delete_adapters(adapter)


def _tensors(held: Any) -> list[torch.Tensor]:
    return [held] if isinstance(held, torch.Tensor) else list(held.parameters())


def _reaches_text(adapter: Adapter) -> bool:
    return any(component.startswith("text_encoder") for component in adapter)


def _check_file(lora: LoraFile, architecture: str) -> None:
    """Check a file before a library opens it."""
    try:
        report = inspect_adapter(lora.path)
        is_same = sha256_of(lora.path) == lora.sha256
    except OSError as error:
        raise EngineError("model_unavailable", name=lora.name) from error
    except InspectionError as error:
        code = "model_incompatible" if lora.path.is_file() else "model_unavailable"
        raise EngineError(code, name=lora.name, reason=error.code) from error
    if not is_same:
        raise EngineError("model_unavailable", name=lora.name, reason="hash_mismatch")
    if report.architecture not in (None, architecture):
        raise EngineError(
            "model_incompatible",
            name=lora.name,
            reason="architecture",
            made_for=get_architecture(report.architecture).title,
            wanted=get_architecture(architecture).title,
        )

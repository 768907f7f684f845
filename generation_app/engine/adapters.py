"""LoRA adapters on a warm pipeline: each file loaded once, switched without touching the base.

An adapter is known by the SHA-256 of its file. Those used last stay attached, switched off, within
a bound of number and bytes; the longest unused goes first. Asking for the set that is already at
work costs nothing. What a LoRA does to the picture is left to peft and diffusers, so it equals
their ``load_lora_weights``; here only guards stand before it: the header is checked before a
library opens the file, and a file whose weights do not all find their place is refused (diffusers
would load it silently without them).
"""

from __future__ import annotations

import re
import sys
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from generation_app.engine.errors import EngineError
from models_app.inspection import InspectionError, inspect_adapter, sha256_of

DEFAULT_MAX_ADAPTERS = 24
DEFAULT_MAX_BYTES = 1024**3
_DOWN_WEIGHT = re.compile(r"(lora_A|lora_down|lora\.down|lora_linear_layer\.down)(\.weight)?$")


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
        *,
        max_adapters: int = DEFAULT_MAX_ADAPTERS,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        self._pipe = pipe
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
        if not wanted:
            self._pipe.disable_lora()
            return
        self._pipe.enable_lora()
        names = [self._attached[sha256].adapter for sha256, _ in wanted]
        self._pipe.set_adapters(names, [weight for _, weight in wanted])

    def _attach(self, lora: LoraFile) -> _Attached:
        expected = _check_file(lora)
        adapter = f"lora_{lora.sha256[:32]}"
        try:
            with warnings.catch_warnings():
                # Several adapters on one network are the point here.
                warnings.filterwarnings("ignore", message="Already found a `peft_config`")
                self._pipe.load_lora_weights(
                    lora.path.parent,
                    weight_name=lora.path.name,
                    adapter_name=adapter,
                    local_files_only=True,
                    use_safetensors=True,
                )
            placed = sum(1 for _ in self._layers(adapter))
        except torch.OutOfMemoryError:
            self._remove(adapter)
            raise
        except Exception as error:
            # The libraries raise many kinds here; all of them mean that the file does not fit.
            traceback.print_exc(file=sys.stderr)
            self._remove(adapter)
            raise EngineError("model_incompatible", name=lora.name) from error
        if placed != expected:
            self._remove(adapter)
            raise EngineError("model_incompatible", name=lora.name, placed=placed, found=expected)
        self.loads += 1
        return self._measure(adapter)

    def _measure(self, adapter: str) -> _Attached:
        size = 0
        in_text_encoder = False
        for component, layer in self._layers(adapter):
            in_text_encoder |= component.startswith("text_encoder")
            for name in layer.adapter_layer_names:
                part = getattr(layer, name, {})
                if adapter not in part:
                    continue
                held = part[adapter]
                tensors = [held] if isinstance(held, torch.Tensor) else list(held.parameters())
                size += sum(tensor.nbytes for tensor in tensors)
        return _Attached(adapter, size, in_text_encoder)

    def _layers(self, adapter: str) -> Iterator[tuple[str, BaseTunerLayer]]:
        for component in self._pipe._lora_loadable_modules:
            network = getattr(self._pipe, component, None)
            if network is None:
                continue
            for module in network.modules():
                if isinstance(module, BaseTunerLayer) and adapter in _adapter_names(module):
                    yield component, module

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


def _adapter_names(layer: BaseTunerLayer) -> set[str]:
    return {name for kind in layer.adapter_layer_names for name in getattr(layer, kind, {})}


def _check_file(lora: LoraFile) -> int:
    """Check a file before a library opens it; return how many layers it has weights for."""
    try:
        header = inspect_adapter(lora.path)
        is_same = sha256_of(lora.path) == lora.sha256
    except OSError as error:
        raise EngineError("model_unavailable", name=lora.name) from error
    except InspectionError as error:
        code = "model_incompatible" if lora.path.is_file() else "model_unavailable"
        raise EngineError(code, name=lora.name, reason=error.code) from error
    if not is_same:
        raise EngineError("model_unavailable", name=lora.name, reason="hash_mismatch")
    if any("dora_scale" in tensor for tensor in header.tensors):
        # diffusers drops these and paints something else.
        raise EngineError("model_incompatible", name=lora.name, reason="dora")
    return sum(1 for tensor in header.tensors if _DOWN_WEIGHT.search(tensor))

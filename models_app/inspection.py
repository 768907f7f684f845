"""Looks into safetensors files before any library opens them; no torch, no Django.

It reads headers and sizes only: every offset, shape and type is checked, but no tensor is loaded,
so a hostile file costs at most one bounded JSON parse. What whole diffusers folders hold is told by
``folders``.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models_app.adapter_names import (
    ALPHA,
    DOWN,
    KOHYA_FAMILIES,
    MAGNITUDE,
    TensorName,
    parse_tensor_name,
)

MAX_HEADER_BYTES = 8 * 1024**2
MAX_JSON_BYTES = 16 * 1024**2
MAX_TENSORS = 20_000
MAX_DIMENSIONS = 16
CHUNK_BYTES = 1024**2
MAX_TRIGGERS = 20
MAX_TRIGGER = 100

# Beginnings of ModelSpec's names, and how wide the texts are that a family's UNet reads.
_MODELSPEC_FAMILIES = {
    "stable-diffusion-v1": "sd1",
    "stable-diffusion-v2": "sd2",
    "stable-diffusion-xl-v1-base": "sdxl",
}
_TEXT_WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}

# Source: https://github.com/huggingface/safetensors, enum Dtype; bits per value.
BITS_PER_VALUE = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


class InspectionError(Exception):
    """A file or folder that is not what it should be.

    Args:
        code: Stable name: ``pickle_weights, weights_invalid, config_invalid, files_missing,
            not_diffusers, unsupported_pipeline``.
        detail: One sentence that names the file.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail


@dataclass(frozen=True)
class TensorEntry:
    """One tensor as the header tells of it; offsets count from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class SafetensorsHeader:
    """All that a safetensors file says about itself."""

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]
    size_bytes: int


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def parse_json(text: bytes, name: str, code: str = "config_invalid") -> dict[str, Any]:
    """Parse a JSON object strictly: UTF-8, no NaN or infinity, no name twice.

    Raises:
        InspectionError: It is anything else.
    """
    try:
        found = json.loads(
            text.decode("utf-8"),
            parse_constant=_refuse_constant,
            object_pairs_hook=_unique_names,
        )
    except (ValueError, RecursionError) as error:
        raise InspectionError(code, f"{name} is not valid JSON: {error}.") from error
    if not isinstance(found, dict):
        raise InspectionError(code, f"{name} does not hold a JSON object.")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Read a configuration file.

    Raises:
        InspectionError: It is missing, too large or not a JSON object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InspectionError(
                "config_invalid", f"{path.name} is too large for a configuration."
            )
        return parse_json(path.read_bytes(), path.name)
    except FileNotFoundError as error:
        raise InspectionError("files_missing", f"{path.name} is missing.") from error
    except OSError as error:
        raise InspectionError("config_invalid", f"{path.name} cannot be read: {error}.") from error


def read_header(path: Path) -> SafetensorsHeader:
    """Read and check the header of a safetensors file.

    Args:
        path: The file; its name is not trusted.

    Raises:
        InspectionError: ``pickle_weights`` for a renamed pickle or zip, else ``weights_invalid``.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            first = handle.read(8)
            _refuse_pickle(first, path.name)
            length = int.from_bytes(first, "little")
            if len(first) < 8 or length < 2 or length > size - 8:
                raise _invalid(path.name, "it is cut short or is no safetensors file")
            if length > MAX_HEADER_BYTES:
                raise _invalid(path.name, f"its header is larger than {MAX_HEADER_BYTES} bytes")
            text = handle.read(length)
    except OSError as error:
        raise _invalid(path.name, f"it cannot be read ({error})") from error
    if not text.startswith(b"{"):
        raise _invalid(path.name, "its header is not a JSON object")
    found = parse_json(text, f"The header of {path.name}", "weights_invalid")
    metadata = _metadata(found.pop("__metadata__", {}), path.name)
    if len(found) > MAX_TENSORS:
        raise _invalid(path.name, f"it holds more than {MAX_TENSORS} tensors")
    tensors = {name: _entry(name, value, path.name) for name, value in found.items()}
    _check_layout(tensors, size - 8 - length, path.name)
    return SafetensorsHeader(tensors=tensors, metadata=metadata, size_bytes=size)


def _invalid(name: str, why: str) -> InspectionError:
    return InspectionError("weights_invalid", f"{name} cannot be used: {why}.")


def _refuse_pickle(first: bytes, name: str) -> None:
    """Refuse what torch.save writes: a zip, or a bare pickle of protocol 2 to 5."""
    if first.startswith(b"PK\x03\x04") or (first[:1] == b"\x80" and first[1:2] in b"\2\3\4\5"):
        # A real header of 0x280 bytes opens with the same byte: then the rest of its length is 0.
        if first[:1] == b"\x80" and not any(first[2:]):
            return
        raise InspectionError(
            "pickle_weights",
            f"{name} is a pickle, which can run code when it is loaded. Use .safetensors weights.",
        )


def _metadata(value: Any, name: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _invalid(name, "its metadata must be texts by name")
    return value


def _counts(value: Any) -> tuple[int, ...] | None:
    """Return a list of whole numbers from 0 up as a tuple, None for anything else."""
    if not isinstance(value, list) or any(type(item) is not int or item < 0 for item in value):
        return None
    return tuple(value)


def _entry(tensor: str, value: Any, name: str) -> TensorEntry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _invalid(name, f"the entry of tensor {tensor[:80]!r} is malformed")
    shape, offsets = _counts(value["shape"]), _counts(value["data_offsets"])
    bits = BITS_PER_VALUE.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if shape is None or len(shape) > MAX_DIMENSIONS or offsets is None or len(offsets) != 2:
        raise _invalid(name, f"the shape or place of tensor {tensor[:80]!r} is malformed")
    if bits is None:
        raise _invalid(name, f"tensor {tensor[:80]!r} has an unknown type")
    start, end = offsets
    if math.prod(shape) * bits != (end - start) * 8:
        raise _invalid(name, f"the size of tensor {tensor[:80]!r} does not fit its shape")
    return TensorEntry(dtype=value["dtype"], shape=shape, start=start, end=end)


def _check_layout(tensors: dict[str, TensorEntry], data_bytes: int, name: str) -> None:
    """Refuse overlaps, holes and bytes that belong to no tensor."""
    position = 0
    for entry in sorted(tensors.values(), key=lambda one: (one.start, one.end)):
        if entry.start != position:
            raise _invalid(name, "its tensors overlap or leave holes")
        position = entry.end
    if position > data_bytes:
        raise _invalid(name, "it ends before its last tensor")
    if position < data_bytes:
        raise _invalid(name, "there are bytes after its last tensor")


@dataclass(frozen=True)
class AdapterReport:
    """What a LoRA file says about itself, in names and shapes and in words.

    Attributes:
        layout: ``kohya`` or ``diffusers`` (peft's own names count as that).
        architecture: ``sd1 | sd2 | sdxl``; ``None`` if neither words nor shapes tell.
        rank: The most frequent one among its layers.
        alpha: Strength; ``None`` if the file does not say (readers then take the rank).
        is_dora: Whether layers carry a magnitude.
        components: The networks it changes, by the name of their folder.
        trigger_words: What calls it in a prompt.
        num_layers: How many layers it changes.
    """

    layout: str
    architecture: str | None
    rank: int
    alpha: float | None
    is_dora: bool
    components: tuple[str, ...]
    trigger_words: tuple[str, ...]
    num_layers: int


def inspect_adapter(path: Path) -> AdapterReport:
    """Tell what a LoRA file is; no tensor but an alpha is looked at.

    Raises:
        InspectionError: The file is broken, or it holds no LoRA of a kind that can be used.
    """
    header = read_header(path)
    parsed = {name: parse_tensor_name(name) for name in header.tensors}
    downs = {name: one for name, one in parsed.items() if one is not None and one.part == DOWN}
    if not downs:
        raise InspectionError("weights_invalid", f"{path.name} holds no LoRA weights.")
    strange = next((name for name, one in parsed.items() if one is None), None)
    if strange is not None:
        raise InspectionError(
            "weights_invalid", f"{path.name} holds {strange[:80]!r}, which is no part of a LoRA."
        )
    if any(header.tensors[name].shape[:1] in ((), (0,)) for name in downs):
        raise InspectionError("weights_invalid", f"{path.name} holds a layer of rank 0.")
    ranks = Counter(header.tensors[name].shape[0] for name in downs)
    return AdapterReport(
        layout="kohya" if next(iter(downs)).startswith("lora_") else "diffusers",
        architecture=_adapter_architecture(header, downs),
        rank=ranks.most_common(1)[0][0],
        alpha=_adapter_alpha(path, header, parsed),
        is_dora=any(one is not None and one.part == MAGNITUDE for one in parsed.values()),
        components=tuple(sorted({one.component for one in downs.values()})),
        trigger_words=_trigger_words(header.metadata),
        num_layers=len(downs),
    )


def adapter_settings(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The settings by peft's names that diffusers' layout keeps, ``<component>.<name>``.

    Returns:
        Nothing if the file does not say or what it says is no JSON object.
    """
    try:
        return parse_json(metadata.get("lora_adapter_metadata", "{}").encode(), "the settings")
    except InspectionError:
        return {}


def _adapter_alpha(
    path: Path, header: SafetensorsHeader, parsed: Mapping[str, TensorName | None]
) -> float | None:
    """The alpha of the first layer that has one, else of the settings, else of the words."""
    for name, one in parsed.items():
        entry = header.tensors[name]
        if one is not None and one.part == ALPHA and math.prod(entry.shape) == 1:
            return _read_scalar(path, header, entry)
    given = [v for k, v in adapter_settings(header.metadata).items() if k.endswith(".lora_alpha")]
    return next((float(v) for v in given if isinstance(v, int | float)), None)


def _read_scalar(path: Path, header: SafetensorsHeader, entry: TensorEntry) -> float | None:
    """Read one floating-point value; other types tell nothing here."""
    formats = {"F64": "<d", "F32": "<f", "F16": "<e", "BF16": "<f"}
    if entry.dtype not in formats:
        return None
    data_start = header.size_bytes - max(one.end for one in header.tensors.values())
    with path.open("rb") as handle:
        handle.seek(data_start + entry.start)
        raw = handle.read(entry.end - entry.start)
    # bfloat16 is the upper half of a float32.
    raw = b"\0\0" + raw if entry.dtype == "BF16" else raw
    value = float(struct.unpack(formats[entry.dtype], raw)[0])
    return value if math.isfinite(value) else None


def _adapter_architecture(header: SafetensorsHeader, downs: Mapping[str, TensorName]) -> str | None:
    """Decide by the words of the header, else by what only one family has."""
    version = header.metadata.get("ss_base_model_version", "")
    named = header.metadata.get("modelspec.architecture", "")
    for architecture, family in KOHYA_FAMILIES.items():
        if version.startswith(family.version_prefix):
            return architecture
    for prefix, architecture in _MODELSPEC_FAMILIES.items():
        if named.startswith(prefix):
            return architecture
    if any(one.component == "text_encoder_2" for one in downs.values()):
        return "sdxl"
    for name, one in downs.items():
        # What reads the text is as wide as the family's text encoders.
        if one.component == "unet" and one.flat.endswith(("attn2_to_k", "attn2_to_v")):
            return _TEXT_WIDTHS.get(header.tensors[name].shape[-1])
    return None


def _trigger_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    phrase = " ".join(metadata.get("modelspec.trigger_phrase", "").split())
    words = (word.strip() for word in phrase.split(","))
    return tuple(word[:MAX_TRIGGER] for word in words if word)[:MAX_TRIGGERS]


def sha256_of(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """Return the SHA-256 of a file in hexadecimal.

    Args:
        path: The file.
        on_bytes: Called with the number of bytes of every chunk, for progress.
    """
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(CHUNK_BYTES):
            digest.update(chunk)
            if on_bytes is not None:
                on_bytes(len(chunk))
    return digest.hexdigest()

"""A LoRA file of ours in kohya's layout, as A1111, Forge, ComfyUI and kohya's own tools read it.

The weights keep their bytes and their order; what changes is the header, and the alphas that
follow them. So it needs no torch and little memory, and a trainer and the site make the same file.
diffusers' own converter is not used: it writes the rank as alpha, leaves a level out of the names
of text encoders and keeps peft's names for DoRA.

Readers differ about DoRA. A ``dora_scale`` is here what LyCORIS defines: the lengths of the rows of
the whole weight, W + alpha / rank · up · down. ComfyUI and Forge divide by the lengths of W alone,
which comes close where the change is small; A1111 takes columns for rows and paints something
else. Nothing that a file could say brings the three together.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from models_app.adapter_names import DOWN, MAGNITUDE, UP, kohya_layer, parse_tensor_name
from models_app.inspection import (
    CHUNK_BYTES,
    InspectionError,
    SafetensorsHeader,
    adapter_settings,
    read_header,
)

_PARTS = {DOWN: "lora_down.weight", UP: "lora_up.weight", MAGNITUDE: "dora_scale"}
#: What only diffusers' layout needs, and what has to be counted anew.
_OWN_WORDS = ("lora_adapter_metadata", "sshs_model_hash", "modelspec.hash_sha256")


def to_kohya(
    source: Path, target: Path, *, architecture: str, unet_config: Mapping[str, Any]
) -> None:
    """Write a LoRA file anew in kohya's layout.

    Args:
        source: A file in diffusers' layout that says its alpha.
        target: Where the other goes; nothing may be there.
        architecture: Name of the family.
        unet_config: Configuration of the base's UNet, which numbers the blocks.

    Raises:
        InspectionError: ``weights_invalid`` if the source is damaged, says no alpha, or holds what
            the layout has no name for.
        OSError: If a file cannot be read or written; nothing is left behind.
    """
    header = read_header(source)
    entries, alphas = _entries(header, architecture, unet_config, source.name)
    tail = b"".join(struct.pack("<f", alpha) for alpha in alphas)
    digest = hashlib.sha256()
    for block in _data(source, header):
        digest.update(block)
    digest.update(tail)
    head = _head(header, entries, digest.hexdigest())
    try:
        with target.open("xb") as out:
            out.write(head)
            for block in _data(source, header):
                out.write(block)
            out.write(tail)
    except FileExistsError:
        raise
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _entries(
    header: SafetensorsHeader, architecture: str, unet_config: Mapping[str, Any], name: str
) -> tuple[dict[str, Any], list[float]]:
    """The tensors under their new names, and the alphas that come after all others."""
    settings = adapter_settings(header.metadata)
    entries: dict[str, Any] = {}
    alphas: list[float] = []
    end = _data_bytes(header)
    for tensor, entry in sorted(header.tensors.items(), key=lambda one: one[1].start):
        parsed = parse_tensor_name(tensor)
        alpha = settings.get(f"{parsed.component}.lora_alpha") if parsed else None
        if parsed is None or parsed.part not in _PARTS or not isinstance(alpha, int | float):
            raise InspectionError("weights_invalid", f"{name} is not in diffusers' layout.")
        try:
            key = kohya_layer(architecture, parsed.component, parsed.layer, unet_config)
        except ValueError as error:
            raise InspectionError("weights_invalid", f"{name}: {error}.") from error
        shape = list(entry.shape)
        if parsed.part == MAGNITUDE:
            # peft holds (out) for a matrix and (1, out, 1, 1) for a convolution.
            shape = [shape[0], 1] if len(shape) == 1 else [shape[1], 1, 1, 1]
        entries[f"{key}.{_PARTS[parsed.part]}"] = _entry(entry.dtype, shape, entry.start, entry.end)
        if parsed.part == DOWN:
            place = end + 4 * len(alphas)
            entries[f"{key}.alpha"] = _entry("F32", [], place, place + 4)
            alphas.append(float(alpha))
    return entries, alphas


def _entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def _head(header: SafetensorsHeader, entries: Mapping[str, Any], digest: str) -> bytes:
    words = {name: text for name, text in header.metadata.items() if name not in _OWN_WORDS}
    words |= {"sshs_model_hash": digest, "modelspec.hash_sha256": f"0x{digest}"}
    text = json.dumps(
        {"__metadata__": dict(sorted(words.items())), **entries},
        separators=(",", ":"),
        ensure_ascii=False,
    ).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _data_bytes(header: SafetensorsHeader) -> int:
    return max(entry.end for entry in header.tensors.values())


def _data(path: Path, header: SafetensorsHeader) -> Iterator[bytes]:
    with path.open("rb") as handle:
        handle.seek(header.size_bytes - _data_bytes(header))
        while block := handle.read(CHUNK_BYTES):
            yield block

"""Files that are whole or not there: written aside, synced, renamed, hashed.

Safetensors are written here and not by the library, because it puts the words of the
header into a random order: the same weights shall give the same file, byte for byte.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
}
_CONTENT_KEY = "content_sha256"
_READ_BYTES = 1 << 20


class CorruptFileError(Exception):
    """A file of ours that does not hold what was written into it."""


def sync_folder(folder: Path) -> None:
    """Makes names in a folder last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes) -> None:
    """Writes a file so that it has all of its bytes or does not exist.

    Raises:
        OSError: If it cannot be written; nothing is left behind.
    """
    _write_blocks(path, [data])


def _write_blocks(path: Path, blocks: Iterable[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with aside.open("xb") as stream:
            for block in blocks:
                stream.write(block)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def hash_file(path: Path) -> str:
    """The SHA-256 of a file.

    Raises:
        OSError: If it cannot be read.
    """
    digest = sha256()
    with path.open("rb") as stream:
        while block := stream.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def hash_component(folder: Path) -> str:
    """A name for a network's weights and configuration, from what its files hold."""
    digest = sha256()
    for path in sorted(folder.glob("*")):
        if path.suffix in (".safetensors", ".json", ".txt"):
            digest.update(f"{path.name}:{hash_file(path)}\n".encode())
    return digest.hexdigest()


def _bytes_of(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def _order(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Wide types first, so that every tensor lies aligned."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def hash_data(tensors: Mapping[str, torch.Tensor]) -> str:
    """The SHA-256 of all that follows the header in the file of :func:`pack_tensors`."""
    digest = sha256()
    for name in _order(tensors):
        digest.update(_bytes_of(tensors[name]))
    return digest.hexdigest()


def _lay_out(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Iterator[bytes]:
    """The blocks of a safetensors file in a fixed order: the header, then each tensor.

    Source: the format's description, huggingface/safetensors README.
    """
    order = _order(tensors)
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for name in order:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    yield len(head).to_bytes(8, "little") + head
    for name in order:
        yield _bytes_of(tensors[name])


def pack_tensors(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """Lays tensors out as a safetensors file, in a fixed order.

    Args:
        tensors: What the file holds.
        metadata: Words of the header.
    """
    return b"".join(_lay_out(tensors, metadata))


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Writes what :func:`pack_tensors` makes, with one tensor at a time in memory.

    Raises:
        OSError: If it cannot be written; nothing is left behind.
    """
    _write_blocks(path, _lay_out(tensors, metadata))


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """The SHA-256 of names, types, shapes and values."""
    digest = sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}\n".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Reads a safetensors file: its tensors and the words of its header.

    Raises:
        CorruptFileError: If it is no whole safetensors file.
        FileNotFoundError: If it is not there.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with safe_open(path, framework="pt") as stream:
            return {name: stream.get_tensor(name) for name in stream.keys()}, dict(  # noqa: SIM118
                stream.metadata() or {}
            )
    except (SafetensorError, OSError, ValueError, RuntimeError) as exc:
        raise CorruptFileError(f"{path.name} is damaged: {exc}") from exc


def write_checked_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes tensors with a hash of their content, for :func:`read_checked_tensors`."""
    write_tensors(path, tensors, {_CONTENT_KEY: hash_tensors(tensors)})


def read_checked_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Reads what :func:`write_checked_tensors` wrote.

    Raises:
        CorruptFileError: If the file does not hold exactly that.
        FileNotFoundError: If it is not there.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get(_CONTENT_KEY) != hash_tensors(tensors):
        raise CorruptFileError(f"{path.name} does not hold what was written into it")
    return tensors

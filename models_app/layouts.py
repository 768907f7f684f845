"""Where a model's files lie: a folder, or a file of adapters and beside it one in kohya's layout.

It works on the columns ``path`` and ``files`` alone: a row finds its files here, and the sweeper
finds the row of a file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from models_app.inspection import inspect_adapter, sha256_of

SUFFIX = ".safetensors"
KOHYA = "kohya"
KOHYA_SUFFIX = f".{KOHYA}{SUFFIX}"

Entry = Mapping[str, Any]


def kohya_key(path: str) -> str:
    """Return the key of an adapter's file in kohya's layout; it lies beside the other."""
    return path.removesuffix(SUFFIX) + KOHYA_SUFFIX


def kohya_entry(files: Iterable[Entry]) -> Entry | None:
    """Return what is known of a model's file in kohya's layout; None if it has none."""
    return next((entry for entry in files if entry.get("layout") == KOHYA), None)


def describe_adapter(file: Path) -> dict[str, Any]:
    """Return the entry in ``files`` of an adapter's file.

    Raises:
        InspectionError: It is no LoRA file.
    """
    report = inspect_adapter(file)
    entry = {"name": file.name, "size": file.stat().st_size, "sha256": sha256_of(file)}
    return {**entry, "layout": report.layout, "is_dora": report.is_dora}


def file_keys(path: str, files: Iterable[Entry]) -> list[str]:
    """Return the keys of all files of a model."""
    if not path.endswith(SUFFIX):
        return [f"{path}/{entry['name']}" for entry in files]
    return [path, kohya_key(path)] if kohya_entry(files) else [path]


def possible_paths(keys: Collection[str]) -> set[str]:
    """Return every ``path`` that a model could have to which one of these keys belongs."""
    folders = {str(folder) for key in keys for folder in PurePosixPath(key).parents}
    others = {key.removesuffix(KOHYA_SUFFIX) + SUFFIX for key in keys if key.endswith(KOHYA_SUFFIX)}
    return folders.union(keys, others)

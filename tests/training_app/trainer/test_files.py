"""Files that are whole or not there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training_app.trainer.files import (
    CorruptFileError,
    hash_file,
    pack_tensors,
    read_checked_tensors,
    read_tensors,
    write_checked_tensors,
    write_file,
)

TENSORS = {
    "b": torch.arange(6, dtype=torch.float32).view(2, 3),
    "a": torch.arange(5, dtype=torch.uint8),
    "c.é": torch.tensor(2.5, dtype=torch.bfloat16),
    "d": torch.zeros(0, 4, dtype=torch.int64),
}


def test_the_library_reads_what_is_packed(tmp_path: Path) -> None:
    write_file(tmp_path / "a.safetensors", pack_tensors(TENSORS, {"z": "1", "a": "日本"}))
    loaded = load_file(tmp_path / "a.safetensors")
    assert set(loaded) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    assert read_tensors(tmp_path / "a.safetensors")[1] == {"z": "1", "a": "日本"}


def test_equal_tensors_give_equal_files() -> None:
    backwards = dict(reversed(TENSORS.items()))
    assert pack_tensors(TENSORS, {"a": "1", "b": "2"}) == pack_tensors(
        backwards, {"b": "2", "a": "1"}
    )


@pytest.mark.parametrize("place", [0, 100, -1])
def test_a_changed_byte_is_noticed(tmp_path: Path, place: int) -> None:
    path = tmp_path / "a.safetensors"
    write_checked_tensors(path, TENSORS)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptFileError):
        read_checked_tensors(path)


def test_a_truncated_file_is_noticed_and_a_missing_one_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_checked_tensors(path, TENSORS)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CorruptFileError):
        read_checked_tensors(path)
    with pytest.raises(FileNotFoundError):
        read_checked_tensors(tmp_path / "none")


def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_file(tmp_path / "a", b"old")

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_file(tmp_path / "a", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_hashes_are_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert hash_file(tmp_path / "a") == expected

"""Files that can be had again, kept under their ceiling."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from studio_project import cache_ceiling
from studio_project.cache_ceiling import trim


@pytest.fixture
def files(settings: Any, tmp_path: Path) -> list[Path]:
    """Make four old files, the oldest first, of which two have room."""
    settings.STUDIO_CACHE_MAX_BYTES = 250
    made = [tmp_path / folder / str(index) for index, folder in enumerate("abab")]
    for age, path in enumerate(made):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 100)
        os.utime(path, (age, age))
    return made


def left(files: list[Path]) -> list[int]:
    return [index for index, path in enumerate(files) if path.exists()]


def test_the_files_used_longest_ago_go(files: list[Path], tmp_path: Path) -> None:
    trim(tmp_path)
    assert left(files) == [2, 3]


def test_what_is_spared_or_was_used_lately_stays(files: list[Path], tmp_path: Path) -> None:
    trim(tmp_path, spared=[tmp_path / "a"])
    assert left(files) == [0, 2]
    os.utime(files[2])
    trim(tmp_path, spared=[tmp_path / "b"])
    assert left(files) == [0, 2]
    for path in files:
        path.write_bytes(b"x" * 100)
    trim(tmp_path)
    assert left(files) == [0, 1, 2, 3]


def test_others_may_trim_at_the_same_time(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path.stat

    def stat(path: Path, **more: Any) -> os.stat_result:
        if path == files[1]:
            path.unlink(missing_ok=True)
        return original(path, **more)

    monkeypatch.setattr(cache_ceiling.Path, "stat", stat)
    trim(tmp_path)
    assert left(files) == [2, 3]

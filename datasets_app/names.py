"""Names that strangers gave: shown to people, compared with each other, never used as a path."""

from __future__ import annotations

import unicodedata
from pathlib import PurePath

MAX_FILE_NAME = 300
MAX_ENDING = 10
REPLACEMENT = "\ufffd"
# They let a text show in another order than it is written: "gnp.exe" for "exe.png".
_DIRECTIONS = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))


def is_control(letter: str) -> bool:
    """Say whether a character steers instead of showing; half a surrogate pair counts as well."""
    return letter in _DIRECTIONS or unicodedata.category(letter) in ("Cc", "Cs")


def has_controls(text: str) -> bool:
    """Say whether a text holds characters that no text of ours may hold."""
    return any(is_control(letter) for letter in text)


def clean_name(name: str) -> str:
    """Return a file name that can be shown: no control characters, cut if too long, ending kept."""
    shown = "".join(REPLACEMENT if is_control(letter) else letter for letter in name) or "?"
    if len(shown) <= MAX_FILE_NAME:
        return shown
    ending = PurePath(shown).suffix[:MAX_ENDING]
    return shown[: MAX_FILE_NAME - len(ending)] + ending

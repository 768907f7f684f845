"""Reads captions: `.txt` files beside pictures, and `metadata.jsonl`.

Plain values in, plain values out: no Django, no database. Which picture a caption belongs to is
decided here by folder and name; writing it to a row is not done here.
"""

from __future__ import annotations

import codecs
import json
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from datasets_app.names import has_controls
from datasets_app.refusals import Refused

MAX_CAPTION = 2000
MAX_REPEATS = 100
MAX_TEXT_BYTES = 64 * 1024
MAX_METADATA_BYTES = 8 * 1024 * 1024
MAX_CAPTIONS = 10_000  # of one upload; an archive holds half as many files
METADATA_NAME = "metadata.jsonl"
CAPTION_KEYS = ("text", "caption", "prompt")
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class Caption:
    """A caption and the picture it was written for.

    Args:
        source: The file it stood in, as people know it.
        folder: Folder of the picture, within its archive.
        name: Name of the picture: with its ending, or only the stem.
        text: The words.
        is_stem: Whether `name` is only the stem.
        repeats: How often the picture is shown where others are shown once; None says nothing.
    """

    source: str
    folder: str
    name: str
    text: str
    is_stem: bool
    repeats: int | None = None


def clean_caption(text: str) -> str:
    """Return a caption on one line.

    Raises:
        Refused: `caption_too_long`, or `caption_invalid` for characters no text holds.
    """
    parts = (part.strip() for part in text.replace("\t", " ").splitlines())
    one_line = " ".join(part for part in parts if part)
    if len(one_line) > MAX_CAPTION:
        raise Refused("caption_too_long", limit=MAX_CAPTION)
    if has_controls(one_line):
        raise Refused("caption_invalid")
    return one_line


def clean_repeats(value: object) -> int:
    """Return how often a picture is shown where others are shown once.

    Raises:
        Refused: `repeats_invalid`.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_REPEATS:
        raise Refused("repeats_invalid", limit=MAX_REPEATS)
    return value


def read_text(data: bytes) -> str:
    """Return the caption that a `.txt` file holds.

    Raises:
        Refused: It is too long, or not text in UTF-8 (or UTF-16 with its mark).
    """
    if len(data) > MAX_TEXT_BYTES:
        raise Refused("caption_too_long", limit=MAX_CAPTION)
    return clean_caption(_decode(data))


def read_metadata(data: bytes, source: str, folder: str) -> Iterator[Caption | Refused]:
    """Yield the captions of a `metadata.jsonl`, and what is wrong with single lines of it.

    Args:
        data: The file.
        source: Its name, as people know it.
        folder: Its folder; `file_name` is relative to it.

    Raises:
        Refused: The file as a whole is not usable.
    """
    if len(data) > MAX_METADATA_BYTES:
        raise Refused("metadata_too_large", megabytes=MAX_METADATA_BYTES // 1024**2)
    lines = _decode(data).split("\n")
    entries = [(n, _entry(n, line)) for n, line in enumerate(lines, start=1) if line.strip()]
    for number, (file_name, text, repeats) in entries:
        path = posixpath.normpath(posixpath.join(folder, file_name.replace("\\", "/")))
        try:
            words = clean_caption(text)
            times = None if repeats is None else clean_repeats(repeats)
        except Refused as error:
            yield Refused(error.code, **error.params, line=number)
            continue
        yield Caption(
            source=f"{source}, {posixpath.basename(path)}",
            folder=posixpath.dirname(path),
            name=posixpath.basename(path),
            text=words,
            is_stem=False,
            repeats=times,
        )


def _entry(number: int, line: str) -> tuple[str, str, object]:
    """Return the file name, the caption and the repeats of one line."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Refused("metadata_invalid", line=number) from error
    if not isinstance(value, dict) or not isinstance(value.get("file_name"), str):
        raise Refused("metadata_invalid", line=number)
    text = next((value[key] for key in CAPTION_KEYS if isinstance(value.get(key), str)), None)
    if text is None:
        raise Refused("metadata_invalid", line=number)
    return value["file_name"], text, value.get("repeats")


def _decode(data: bytes) -> str:
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise Refused("caption_encoding") from error


class CaptionBook:
    """The captions of one upload, looked up by picture.

    A `.txt` beside a picture goes before a line of `metadata.jsonl`. Names are compared without
    regard to case. Loose files have no folder; each archive is a world of its own.
    """

    def __init__(self) -> None:
        self._by_path: dict[tuple[int, str, str], Caption] = {}
        self._by_stem: dict[tuple[int, str, str], Caption] = {}
        self._used: set[int] = set()

    def add(self, world: int, caption: Caption) -> None:
        """Keep a caption; a later one for the same picture replaces it.

        Raises:
            Refused: `too_many_captions`.
        """
        if len(self._by_path) + len(self._by_stem) >= MAX_CAPTIONS:
            raise Refused("too_many_captions", limit=MAX_CAPTIONS)
        shelf = self._by_stem if caption.is_stem else self._by_path
        shelf[world, caption.folder.casefold(), caption.name.casefold()] = caption

    def find(self, world: int, folder: str, name: str) -> Caption | None:
        """Return the caption written for a picture."""
        place = (world, folder.casefold())
        whole, stem = (*place, name.casefold()), (*place, stem_of(name))
        # Some programs call the text of fox.png fox.png.txt.
        return self._by_stem.get(stem) or self._by_stem.get(whole) or self._by_path.get(whole)

    def mark_used(self, caption: Caption) -> None:
        """Remember that a caption has found its picture."""
        self._used.add(id(caption))

    def unused(self) -> Iterable[Caption]:
        """Return the captions whose picture was not made in this upload."""
        captions = [*self._by_path.values(), *self._by_stem.values()]
        return [caption for caption in captions if id(caption) not in self._used]


def stem_of(name: str) -> str:
    """Return a name without its ending, for comparing."""
    return posixpath.splitext(name)[0].casefold()

"""Archives that are streamed: every reader finds what was put in, and the length was right."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile

import pytest

from studio_project import zip_stream
from studio_project.zip_stream import Member, zip_chunks, zip_length

CONTENTS = {
    "model/unet/config.json": b"{}",
    "model/leer": b"",
    "model/été 🦊.txt": "é".encode() * 1000,
    "model/big.safetensors": bytes(range(256)) * 3000,
}


def members(contents: dict[str, bytes]) -> list[Member]:
    return [
        Member(name, len(content), lambda content=content: BytesIO(content))
        for name, content in contents.items()
    ]


@pytest.mark.parametrize("limit", [0xFFFFFFFF, 1000, 0], ids=["short", "mixed", "long"])
def test_an_archive_holds_what_was_put_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: int
) -> None:
    """With a low limit the 64-bit fields are used as for files of many gigabytes."""
    if limit == 0xFFFFFFFF:
        monkeypatch.setattr(zip_stream, "LIMIT", limit)
    else:
        # The fields that stand for "see the long one" keep their value.
        monkeypatch.setattr(zip_stream, "_is_large", lambda one, at: max(one.size, at) >= limit)
    content = b"".join(zip_chunks(members(CONTENTS)))
    assert len(content) == zip_length(members(CONTENTS))
    with ZipFile(BytesIO(content)) as archive:
        assert archive.testzip() is None
        assert {one.filename: archive.read(one) for one in archive.infolist()} == CONTENTS
        assert {one.compress_type for one in archive.infolist()} == {ZIP_STORED}
    assert b"".join(zip_chunks(members(CONTENTS))) == content


def test_an_archive_of_over_four_gigabytes_has_long_fields() -> None:
    huge = [Member("a", 5 * 2**32, BytesIO), Member("b", 1, BytesIO)]
    head = zip_stream._local_header(b"a", True)
    directory = sum(len(zip_stream._central_header(b"a", 0, 5 * 2**32, 0, True)) for _ in huge)
    files = 2 * len(head) + 2 * 24 + 5 * 2**32 + 1
    end = zip_stream._end(2, files, directory)
    assert zip_length(huge) == files + directory + len(end)
    assert len(end) == 98


def test_the_end_of_a_long_archive_is_read_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_stream, "_is_large", lambda one, at: True)
    short = zip_stream._end

    def end(count: int, offset: int, size: int) -> bytes:
        monkeypatch.setattr(zip_stream, "LIMIT", 1)
        made = short(count, offset, size)
        monkeypatch.setattr(zip_stream, "LIMIT", 0xFFFFFFFF)
        return made[:-22] + zip_stream._END.pack(
            b"PK\x05\x06", 0, 0, count, count, size, 0xFFFFFFFF, 0
        )

    monkeypatch.setattr(zip_stream, "_end", end)
    with ZipFile(BytesIO(b"".join(zip_chunks(members(CONTENTS))))) as archive:
        assert archive.namelist() == list(CONTENTS)
        assert archive.testzip() is None


@pytest.mark.parametrize("said", [0, 5, 7])
def test_a_file_of_another_length_breaks_the_stream_off(said: int) -> None:
    with pytest.raises(OSError, match="as long"):
        list(zip_chunks([Member("a", said, lambda: BytesIO(b"123456"))]))


def test_an_empty_archive_is_an_archive() -> None:
    assert ZipFile(BytesIO(b"".join(zip_chunks([])))).namelist() == []
    assert zip_length([]) == 22

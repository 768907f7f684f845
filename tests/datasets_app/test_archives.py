"""Archives that strangers made: nothing leaves them, nothing grows without end."""

from __future__ import annotations

import stat
import struct
import tracemalloc
import zipfile
from io import BytesIO

import pytest

from datasets_app.archives import Archive, EntryRefused, Limits
from datasets_app.refusals import Refused
from datasets_app.sentences import SENTENCES
from tests.datasets_app.makers import zipped

SMALL = Limits(max_entries=10, max_total_bytes=3_000_000, max_entry_bytes=2_000_000)


def refusal(content: bytes, limits: Limits | None = None) -> str:
    with pytest.raises(Refused) as caught:
        Archive(BytesIO(content), limits)
    assert caught.value.code in SENTENCES
    return caught.value.code


def rejected(content: bytes) -> dict[str, str]:
    return {entry.name: entry.code for entry in Archive(BytesIO(content)).rejected}


def contents(archive: Archive) -> dict[str, bytes]:
    found = {}
    for entry in archive.entries:
        out = BytesIO()
        archive.copy(entry, out)
        found[f"{entry.folder}|{entry.name}"] = out.getvalue()
    return found


def test_folders_are_told_apart_and_bytes_are_right() -> None:
    content = zipped({"a.png": b"1", "set/a.png": b"2", "set/deep/a.txt": b"3", "set/": b""})
    archive = Archive(BytesIO(content))
    assert contents(archive) == {"|a.png": b"1", "set|a.png": b"2", "set/deep|a.txt": b"3"}
    assert archive.rejected == []


def test_stored_entries_and_a_comment_are_fine() -> None:
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.png", b"1")
        archive.comment = b"made by hand PK\x05"
    assert contents(Archive(BytesIO(out.getvalue()))) == {"|a.png": b"1"}


def test_what_systems_add_is_left_out_silently() -> None:
    litter = {"__MACOSX/._a.png": b"x", ".DS_Store": b"x", "set/Thumbs.db": b"x", "a.png": b"1"}
    archive = Archive(BytesIO(zipped(litter)))
    assert [entry.name for entry in archive.entries] == ["a.png"]
    assert archive.rejected == []


@pytest.mark.parametrize(
    "name",
    [
        "../evil.png",
        "set/../../evil.png",
        "..\\evil.png",
        "/etc/evil.png",
        "\\\\server\\evil.png",
        "C:\\evil.png",
        "c:evil.png",
        "evil.png\x00.txt",
        "new\nline.png",
    ],
)
def test_names_that_point_elsewhere_are_rejected_and_the_rest_is_read(name: str) -> None:
    long = name.replace("\x00", "\x01")  # the library cuts names at NUL when it writes
    content = zipped({long: b"x", "good.png": b"1"})
    content = content.replace(long.encode(), name.encode())
    archive = Archive(BytesIO(content))
    assert [entry.code for entry in archive.rejected] == ["archive_unsafe_name"]
    assert contents(archive) == {"|good.png": b"1"}


def test_two_dots_inside_a_name_are_fine() -> None:
    assert contents(Archive(BytesIO(zipped({"a..b/fox..png": b"1"})))) == {"a..b|fox..png": b"1"}


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_rejected(kind: int) -> None:
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo("link.png")
        info.create_system, info.external_attr = 3, (kind | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
        archive.writestr("good.png", b"1")
    assert rejected(out.getvalue()) == {"link.png": "archive_link"}


@pytest.mark.parametrize("name", ["more.zip", "more.TAR.GZ", "more.7z", "more.rar"])
def test_archives_inside_are_rejected_by_name(name: str) -> None:
    assert rejected(zipped({name: b"x", "a.png": b"1"})) == {name: "archive_nested"}


def test_archives_inside_are_rejected_by_their_bytes() -> None:
    archive = Archive(BytesIO(zipped({"fox.png": zipped({"a.png": b"1"})})))
    with pytest.raises(EntryRefused) as caught:
        contents(archive)
    assert (caught.value.name, caught.value.code) == ("fox.png", "archive_nested")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_rare_methods_are_rejected(method: int) -> None:
    assert rejected(zipped({"a.png": b"1" * 100}, method)) == {"a.png": "archive_method"}


def test_a_password_refuses_the_archive() -> None:
    content = bytearray(zipped({"a.png": b"1"}))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    assert refusal(bytes(content)) == "archive_encrypted"


@pytest.mark.parametrize("content", [b"", b"no zip at all", b"PK\x03\x04" + b"\0" * 100])
def test_what_is_no_zip_is_refused(content: bytes) -> None:
    assert refusal(content) == "archive_unreadable"


def test_a_truncated_zip_is_refused() -> None:
    content = zipped({"a.png": b"1" * 1000, "b.png": b"2"})
    assert refusal(content[: len(content) - 30]) == "archive_unreadable"


def test_an_empty_zip_is_refused() -> None:
    assert refusal(zipped({})) == "archive_empty"
    assert refusal(zipped({"folder/": b"", ".DS_Store": b""})) == "archive_empty"


def test_entries_are_counted() -> None:
    ten = {f"{index}.png": b"x" for index in range(10)}
    assert len(Archive(BytesIO(zipped(ten)), SMALL).entries) == 10
    assert refusal(zipped({**ten, "more.png": b"x"}), SMALL) == "archive_too_many_entries"


def test_a_million_entries_are_refused_before_they_become_objects() -> None:
    header = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", *[0] * 18)
    assert len(header) == 46
    count = 300_000
    directory = header * count
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(directory), 0, 0)
    content = BytesIO(directory + end)
    del directory
    tracemalloc.start()
    with pytest.raises(Refused) as caught:
        Archive(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.code == "archive_too_many_entries"
    assert peak < 2_000_000


def test_zip64_is_refused() -> None:
    content = zipped({"a.png": b"1"})
    at = content.rindex(b"PK\x05\x06")
    locator = b"PK\x06\x07" + b"\0" * 16
    assert refusal(content[:at] + locator + content[at:]) == "archive_unreadable"


def test_a_bomb_is_refused_by_its_ratio() -> None:
    assert refusal(zipped({"a.png": b"\0" * 50_000_000})) == "archive_bomb"


def test_many_small_bombs_are_refused_by_the_ratio_of_the_whole() -> None:
    entries = {f"{index}.png": b"\0" * 100_000 for index in range(60)}
    assert refusal(zipped(entries)) == "archive_bomb"


def test_the_sum_is_limited() -> None:
    import random

    noise = random.Random(1).randbytes(1_600_000)
    assert refusal(zipped({"a.png": noise, "b.png": noise}), SMALL) == "archive_too_large"


def test_one_entry_is_limited() -> None:
    import random

    content = zipped({"a.png": random.Random(1).randbytes(2_000_001)})
    archive = Archive(BytesIO(content), SMALL)
    assert [entry.code for entry in archive.rejected] == ["archive_entry_too_large"]


def test_entries_that_share_their_bytes_are_a_bomb() -> None:
    """Fifield's trick in its simplest form: many names for the same packed bytes."""
    one = zipped({"0.png": b"ab" * 40_000})
    at, end = one.index(b"PK\x01\x02"), one.rindex(b"PK\x05\x06")
    record = one[at:end]
    directory = record * 100
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 100, 100, len(directory), at, 0)
    assert refusal(one[:at] + directory + tail) == "archive_bomb"


def test_a_lie_about_the_size_is_found_while_reading() -> None:
    content = bytearray(zipped({"a.png": b"\0" * 5_000_000}))
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = content.index(mark) + offset
        content[at : at + 4] = struct.pack("<L", 1000)
    archive = Archive(BytesIO(bytes(content)))
    tracemalloc.start()
    with pytest.raises(EntryRefused) as caught:
        contents(archive)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.code == "archive_entry_damaged"
    assert peak < 2_000_000


def test_bytes_are_counted_while_they_flow() -> None:
    archive = Archive(
        BytesIO(zipped({"a.png": b"x" * 900_000, "b.png": b"y" * 900_000}, zipfile.ZIP_STORED))
    )
    archive.limits = Limits(max_total_bytes=1_000_000)
    first, second = archive.entries
    archive.copy(first, BytesIO())
    with pytest.raises(Refused) as caught:
        archive.copy(second, BytesIO())
    assert caught.value.code == "archive_too_large"
    assert not isinstance(caught.value, EntryRefused)


def test_damaged_bytes_reject_the_entry() -> None:
    content = bytearray(zipped({"a.png": b"1" * 1000, "b.png": b"2"}, zipfile.ZIP_STORED))
    content[100] ^= 1
    archive = Archive(BytesIO(bytes(content)))
    with pytest.raises(EntryRefused) as caught:
        archive.copy(archive.entries[0], BytesIO())
    assert caught.value.code == "archive_entry_damaged"
    archive.copy(archive.entries[1], BytesIO())


def test_a_full_disk_is_not_the_archives_fault() -> None:
    class Full(BytesIO):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    archive = Archive(BytesIO(zipped({"a.png": b"1"})))
    with pytest.raises(OSError, match="No space"):
        archive.copy(archive.entries[0], Full())


def test_random_damage_never_raises_anything_else() -> None:
    import random

    chance = random.Random(7)
    whole = zipped({"set/a.png": b"1" * 500, "b.txt": b"words", "c.png": bytes(range(256))})
    for _round in range(400):
        content = bytearray(whole)
        for _change in range(chance.randint(1, 5)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        try:
            archive = Archive(BytesIO(bytes(content)))
        except Refused:
            continue
        for entry in archive.entries:
            try:
                archive.copy(entry, BytesIO())
            except Refused:
                continue

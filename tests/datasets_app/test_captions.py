"""What is read from caption files, and which picture a caption belongs to."""

from __future__ import annotations

import json

import pytest

from datasets_app import captions
from datasets_app.captions import (
    MAX_CAPTION,
    MAX_METADATA_BYTES,
    Caption,
    CaptionBook,
    clean_caption,
    read_metadata,
    read_text,
)
from datasets_app.refusals import Refused
from datasets_app.sentences import SENTENCES


def lines(*values: object) -> bytes:
    return "\n".join(json.dumps(value) for value in values).encode()


def test_a_caption_is_one_line() -> None:
    assert clean_caption("  a fox,\r\n\r\n in\tthe snow \n") == "a fox, in the snow"
    assert clean_caption("un renard — 狐 🦊") == "un renard — 狐 🦊"
    assert clean_caption("") == ""


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x" * (MAX_CAPTION + 1), "caption_too_long"),
        ("a\x00b", "caption_invalid"),
        ("a\x1b[31m", "caption_invalid"),
        ("half \ud83e", "caption_invalid"),
        ("turned \u202e around", "caption_invalid"),
    ],
)
def test_unusable_captions_are_refused(text: str, code: str) -> None:
    with pytest.raises(Refused) as caught:
        clean_caption(text)
    assert caught.value.code == code
    assert code in SENTENCES


def test_a_caption_of_exactly_the_limit_is_taken() -> None:
    assert len(clean_caption("x" * MAX_CAPTION)) == MAX_CAPTION


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_files_may_carry_a_mark(encoding: str) -> None:
    assert read_text("renard ébahi".encode(encoding)) == "renard ébahi"


def test_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(Refused) as caught:
        read_text("ébahi".encode("latin-1"))
    assert caught.value.code == "caption_encoding"


def test_a_text_file_of_megabytes_is_refused() -> None:
    with pytest.raises(Refused) as caught:
        read_text(b" " * 1_000_000)
    assert caught.value.code == "caption_too_long"


@pytest.mark.parametrize("key", ["text", "caption", "prompt"])
def test_metadata_knows_three_names_for_the_caption(key: str) -> None:
    data = lines({"file_name": "train/0001.png", key: "a fox"})
    (found,) = read_metadata(data, "metadata.jsonl", "set")
    assert found == Caption("metadata.jsonl, 0001.png", "set/train", "0001.png", "a fox", False)


@pytest.mark.parametrize("repeats", [0, 101, 1.5, True, "3"])
def test_repeats_in_metadata_are_whole_numbers_within_bounds(repeats: object) -> None:
    data = lines(
        {"file_name": "a.png", "text": "a", "repeats": repeats},
        {"file_name": "b.png", "text": "b", "repeats": 7},
    )
    refused, taken = read_metadata(data, "m", "")
    assert isinstance(refused, Refused)
    assert (refused.code, refused.params["line"]) == ("repeats_invalid", 1)
    assert isinstance(taken, Caption)
    assert taken.repeats == 7


def test_blank_lines_and_unknown_keys_are_fine() -> None:
    data = b"\n" + lines({"file_name": "a.png", "text": "a", "tags": [1]}) + b"\r\n\n"
    assert [caption.text for caption in read_metadata(data, "m", "")] == ["a"]


def test_a_line_that_is_too_long_is_refused_alone() -> None:
    data = lines({"file_name": "a.png", "text": "x" * 10_000}, {"file_name": "b.png", "text": "b"})
    refused, taken = read_metadata(data, "m", "")
    assert isinstance(refused, Refused)
    assert (refused.code, refused.params["line"]) == ("caption_too_long", 1)
    assert isinstance(taken, Caption)


@pytest.mark.parametrize(
    "bad",
    [
        b"{",
        b"[]",
        b"1",
        b"{}",
        b'{"file_name": 5, "text": "a"}',
        b'{"file_name": "a.png"}',
        b'{"file_name": "a.png", "text": 5}',
        b"[" * 200_000,
        b"9" * 10_000,
    ],
)
def test_a_wrong_line_refuses_the_file_and_names_the_line(bad: bytes) -> None:
    data = lines({"file_name": "a.png", "text": "a"}) + b"\n" + bad
    with pytest.raises(Refused) as caught:
        list(read_metadata(data, "m", ""))
    assert (caught.value.code, caught.value.params["line"]) == ("metadata_invalid", 2)


def test_metadata_has_a_size() -> None:
    with pytest.raises(Refused) as caught:
        list(read_metadata(b" " * (MAX_METADATA_BYTES + 1), "m", ""))
    assert caught.value.code == "metadata_too_large"


def stem(folder: str, name: str, text: str) -> Caption:
    return Caption(name, folder, name, text, is_stem=True)


def test_captions_are_found_by_folder_and_stem() -> None:
    book = CaptionBook()
    book.add(0, stem("one", "fox", "first"))
    book.add(0, stem("two", "FOX", "second"))
    book.add(1, stem("one", "fox", "elsewhere"))
    assert book.find(0, "one", "fox.png").text == "first"  # type: ignore[union-attr]
    assert book.find(0, "Two", "Fox.JPG").text == "second"  # type: ignore[union-attr]
    assert book.find(1, "one", "fox.png").text == "elsewhere"  # type: ignore[union-attr]
    assert book.find(0, "", "fox.png") is None


def test_a_text_called_after_the_whole_name_is_found() -> None:
    book = CaptionBook()
    book.add(0, stem("", "fox.png", "a fox"))
    assert book.find(0, "", "fox.png").text == "a fox"  # type: ignore[union-attr]
    assert book.find(0, "", "fox.jpg") is None


def test_a_text_beside_the_picture_goes_before_metadata() -> None:
    book = CaptionBook()
    book.add(0, Caption("m", "", "fox.png", "from metadata", is_stem=False))
    assert book.find(0, "", "fox.png").text == "from metadata"  # type: ignore[union-attr]
    book.add(0, stem("", "fox", "from text"))
    assert book.find(0, "", "fox.png").text == "from text"  # type: ignore[union-attr]


def test_an_upload_holds_so_many_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions, "MAX_CAPTIONS", 3)
    book = CaptionBook()
    for index in range(3):
        book.add(0, stem("", str(index), "x"))
    with pytest.raises(Refused) as caught:
        book.add(0, stem("", "more", "x"))
    assert caught.value.code in SENTENCES


def test_unused_captions_are_known() -> None:
    book = CaptionBook()
    for name in ("a", "b"):
        book.add(0, stem("", name, name))
    found = book.find(0, "", "a.png")
    assert found is not None
    book.mark_used(found)
    assert [caption.text for caption in book.unused()] == ["b"]

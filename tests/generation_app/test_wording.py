"""Variations and LoRAs in prompts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generation_app.wording import LoraTag, TooManyVariations, take_loras, variations


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a fox", ["a fox"]),
        ("", [""]),
        ("a {red|blue} fox", ["a red fox", "a blue fox"]),
        ("{a|b}{c|d}", ["ac", "ad", "bc", "bd"]),
        ("{a|{b|c} d}", ["a", "b d", "c d"]),
        ("{a|}x", ["ax", "x"]),
        # What does not fit the notation is text.
        ("{a}", ["{a}"]),
        ("{a|", ["{a|"]),
        ("a|b}", ["a|b}"]),
        ("{{a|b}", ["{a", "{b"]),
        ("{a|{b", ["{a|{b"]),
        (r"\{a|b\}", ["{a|b}"]),
        (r"{a\|b|c}", ["a|b", "c"]),
        (r"\(a\)", [r"\(a\)"]),
    ],
)
def test_every_combination_is_written_out(prompt: str, expected: list[str]) -> None:
    assert variations(prompt, most=8) == expected


def test_too_many_are_counted_and_not_written_out() -> None:
    with pytest.raises(TooManyVariations) as caught:
        variations("{a|b}" * 64, most=8)
    assert caught.value.count == 2**64
    assert variations("{" * 5000, most=8) == ["{" * 5000]
    assert len(variations("{a|b}" * 3, most=8)) == 8


@settings(deadline=None, database=None)
@given(st.text(alphabet="ab{}|\\", max_size=40))
def test_whatever_is_written_means_at_least_one_prompt(prompt: str) -> None:
    try:
        found = variations(prompt, most=100)
    except TooManyVariations as error:
        assert error.count > 100
    else:
        assert 1 <= len(found) <= 100


@pytest.mark.parametrize(
    ("prompt", "text", "tags"),
    [
        ("a fox", "a fox", []),
        ("a fox <lora:ink:0.8>", "a fox", [LoraTag("ink", 0.8)]),
        ("<lora:ink> a <lora:Old:-1:0.5>", "a", [LoraTag("ink", 1.0), LoraTag("Old", -1.0)]),
        ("<lora:ink:much>", "", [LoraTag("ink", "much")]),
        ("<lora:>", "<lora:>", []),
        ("<lora:ink", "<lora:ink", []),
        (" a ", " a ", []),
    ],
)  # fmt: skip
def test_loras_are_taken_out_of_a_prompt(prompt: str, text: str, tags: list[LoraTag]) -> None:
    assert take_loras(prompt) == (text, tags)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("piece", [" ", "<lora:", "<lora:a:", "<lora:a:b:", "<lora:a> "])
def test_hostile_prompts_take_no_longer_than_others(piece: str) -> None:
    take_loras(piece * (2_000_000 // len(piece)))

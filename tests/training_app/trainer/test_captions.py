"""Captions: trigger word, prefix, tags in other orders."""

from __future__ import annotations

from typing import Any

import pytest

from training_app.trainer.captions import training_prompts
from training_app.trainer.config import resolve_config


def _prompts(caption: str, key: str = "00", method: str = "lora", **asked: Any) -> tuple[str, ...]:
    config = resolve_config(asked, architecture="sd1", method=method, num_images=10)
    return training_prompts(caption, config, key)


@pytest.mark.parametrize(
    ("caption", "word", "prompt"),
    [
        ("a zorp on grass", "zorp", "a zorp on grass"),
        ("A ZORP on grass", "zorp", "A ZORP on grass"),
        ("a dog  on\ngrass", "zorp", "zorp, a dog on grass"),
        ("zorpling", "zorp", "zorp, zorpling"),
        ("", "zorp", "zorp"),
        ("  ", "", ""),
        ("a dog", "", "a dog"),
        ("c++ logo", "c++", "c++ logo"),
        ("一只 ゾープ", "ゾープ", "一只 ゾープ"),
    ],
)
def test_the_trigger_word_is_in_every_prompt_once(caption: str, word: str, prompt: str) -> None:
    assert _prompts(caption, trigger_word=word) == (prompt,)


@pytest.mark.parametrize(
    ("caption", "prompt"),
    [
        ("a dog", "zorp, old film, a dog"),
        ("zorp, a dog", "zorp, old film, a dog"),
        ("the zorp and a dog", "old film, the zorp and a dog"),
        ("", "zorp, old film"),
    ],
)
def test_a_prefix_follows_the_trigger_word(caption: str, prompt: str) -> None:
    assert _prompts(caption, trigger_word="zorp", caption_prefix="old film") == (prompt,)
    assert _prompts("a dog", caption_prefix="old film") == ("old film, a dog",)


def test_a_picture_without_a_caption_has_the_instance_prompt() -> None:
    asked = {"method": "dreambooth", "trigger_word": "zorp", "instance_prompt": "a zorp"}
    assert _prompts(" ", **asked) == ("a zorp",)
    assert _prompts("a zorp on grass", **asked) == ("a zorp on grass",)


def test_a_prefix_may_hold_the_trigger_word() -> None:
    prompts = _prompts("a dog", trigger_word="zorp", caption_prefix="photo of zorp")
    assert prompts == ("photo of zorp, a dog",)


def test_tags_are_shuffled_behind_what_stays() -> None:
    asked = {"trigger_word": "zorp", "shuffle_captions": True, "keep_tokens": 1}
    prompts = _prompts("hat, red, blue, green, zorp smiling", **asked, caption_variants=5)
    assert len(set(prompts)) == 5
    assert prompts[0] == "zorp smiling, hat, red, blue, green"
    for prompt in prompts:
        tags = prompt.split(", ")
        assert tags[:2] == ["zorp smiling", "hat"]
        assert sorted(tags[2:]) == ["blue", "green", "red"]
    assert prompts == _prompts(
        "hat, red, blue, green, zorp smiling", **asked, caption_variants=5, seed=9
    )
    other = _prompts("hat, red, blue, green, zorp smiling", "01", **asked, caption_variants=5)
    assert other != prompts


@pytest.mark.parametrize(
    ("caption", "count"), [("", 1), ("a dog", 1), ("a, b", 2), ("a, a", 1), (",, a ,,", 1)]
)
def test_there_are_no_more_orders_than_tags_allow(caption: str, count: int) -> None:
    prompts = _prompts(caption, shuffle_captions=True, caption_variants=32)
    assert len(prompts) == len(set(prompts)) == count


def test_tags_keep_their_order_unless_asked() -> None:
    assert _prompts("c,b , a") == ("c,b , a",)

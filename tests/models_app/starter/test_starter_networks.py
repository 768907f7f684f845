"""The tokenizer and the sizes of the networks."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from models_app.starter.networks import MAXIMUM_TOKENS, byte_units, make_vae, write_tokenizer
from models_app.starter.world import vocabulary


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_each_word_of_the_language_is_one_token(tokenizer: CLIPTokenizer) -> None:
    for word in vocabulary():
        assert tokenizer.tokenize(word) == [f"{word}</w>"]


def test_unknown_words_fall_into_pieces_of_their_own(tokenizer: CLIPTokenizer) -> None:
    words = ["zorp", "bromp", "zorq", "Ünï", "字"]
    pieces = [tuple(tokenizer(word).input_ids[1:-1]) for word in words]
    assert len(set(pieces)) == len(words)
    assert all(tokenizer.eos_token_id not in ids for ids in pieces)


def test_captions_are_padded_with_the_end_token_to_77(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer("a red circle", padding="max_length").input_ids
    assert len(ids) == MAXIMUM_TOKENS
    assert ids[0] == tokenizer.bos_token_id
    assert set(ids[4:]) == {tokenizer.eos_token_id}


def test_long_prompts_are_cut(tokenizer: CLIPTokenizer) -> None:
    assert len(tokenizer("red " * 200, truncation=True).input_ids) == MAXIMUM_TOKENS


def test_tokenizer_reads_back_the_same(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    caption = "a large orange heart on a zorp background"
    assert (
        CLIPTokenizer.from_pretrained(tmp_path)(caption).input_ids == tokenizer(caption).input_ids
    )


def test_every_byte_has_its_unit() -> None:
    assert len(set(byte_units())) == 256


def test_vae_shrinks_eight_times() -> None:
    vae = make_vae()
    assert 2 ** (len(vae.config.block_out_channels) - 1) == 8

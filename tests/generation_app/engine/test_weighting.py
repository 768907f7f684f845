"""Weights in prompts and prompts longer than an encoder reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from generation_app.engine import prompts
from generation_app.engine.resident import Engine
from generation_app.engine.weighting import CHUNK_TOKENS, Fragment, chunks_of, parse
from models_app.loading import load_pipeline
from tests.generation_app.engine.conftest import Recorder
from tests.tiny import make_tiny_sdxl

Order = Callable[..., dict[str, Any]]


def read(prompt: str) -> list[tuple[str, float]]:
    return [(fragment.text, round(fragment.weight, 4)) for fragment in parse(prompt)]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a fox", [("a fox", 1.0)]),
        ("", [("", 1.0)]),
        ("a (red) fox", [("a ", 1.0), ("red", 1.1), (" fox", 1.0)]),
        ("((fox))", [("fox", 1.21)]),
        ("[fox]", [("fox", 0.9091)]),
        ("a (red fox:1.3), old", [("a ", 1.0), ("red fox", 1.3), (", old", 1.0)]),
        ("(fox:0.5)", [("fox", 0.5)]),
        ("(fox: .5 )", [("fox", 0.5)]),
        ("(fox:-1)", [("fox", -1.0)]),
        ("(fox:1000)", [("fox", 10.0)]),
        ("(a (b:2) c:0.5)", [("a ", 0.5), ("b", 1.0), (" c", 0.5)]),
        ("([fox])", [("fox", 1.0)]),
        (r"a \(real\) fox", [("a (real) fox", 1.0)]),
        (r"\\", [("\\", 1.0)]),
        ("ratio 16:9", [("ratio 16:9", 1.0)]),
        ("(16:9 screen)", [("16:9 screen", 1.1)]),
        # Without a partner a bracket is a character like any other.
        ("((((", [("((((", 1.0)]),
        ("))", [("))", 1.0)]),
        ("(fox", [("(fox", 1.0)]),
        ("fox:1.2)", [("fox:1.2)", 1.0)]),
        ("((fox)", [("(", 1.0), ("fox", 1.1)]),
        ("(a]", [("(a]", 1.0)]),
        ("{a|", [("{a|", 1.0)]),
        ("()", [("", 1.0)]),
        ("a\\", [("a\\", 1.0)]),
    ],
)
def test_the_notation(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert read(prompt) == expected


@settings(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(alphabet="ab ()[]:.12\\", max_size=60))
def test_whatever_is_written_is_read_and_no_word_is_lost(prompt: str) -> None:
    fragments = parse(prompt)
    assert fragments
    assert all(abs(fragment.weight) <= 10 for fragment in fragments)
    letters = "".join(fragment.text for fragment in fragments)
    assert [c for c in letters if c in "ab"] == [c for c in prompt if c in "ab"]


def test_brackets_by_the_thousand_cost_nothing() -> None:
    assert read("(" * 5000)[0][1] == 1.0
    assert len(parse("(a)" * 3000)) == 1


def test_chunks_are_full_and_cut_behind_a_comma_where_one_is_near() -> None:
    def tokenize(text: str) -> list[int]:
        return [9 if letter == "," else 1 for letter in text]

    plain = chunks_of([Fragment("x" * 160)], tokenize, 9)
    assert [len(chunk.tokens) for chunk in plain] == [75, 75, 10]
    near = chunks_of([Fragment("x" * 69 + "," + "x" * 30)], tokenize, 9)
    assert [len(chunk.tokens) for chunk in near] == [70, 30]
    far = chunks_of([Fragment("x" * 40 + "," + "x" * 59)], tokenize, 9)
    assert [len(chunk.tokens) for chunk in far] == [75, 25]
    assert [chunk.tokens for chunk in chunks_of([Fragment("")], tokenize, 9)] == [()]
    weights = chunks_of([Fragment("xx", 2.0), Fragment("y")], tokenize, None)[0].weights
    assert weights == (2.0, 2.0, 1.0)


@pytest.fixture(scope="module")
def pipes(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = make_tiny_sdxl(tmp_path_factory.mktemp("xl") / "base")
    return {"sd1": load_pipeline(base, "sd1"), "sdxl": load_pipeline(folder, "sdxl")}


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@pytest.mark.parametrize("clip_skip", [0, 1])
@torch.inference_mode()
def test_a_chunk_without_weights_is_what_plain_diffusers_encodes(
    pipes: dict[str, Any], kind: str, clip_skip: int
) -> None:
    pipe, text = pipes[kind], "a red fox 🦊"
    plain = prompts.encode_text(pipe, kind, text, clip_skip=clip_skip, negative=False)
    chunked = prompts._encode_chunks(pipe, (Fragment(text),), clip_skip)
    assert torch.equal(plain.prompt_embeds, chunked.prompt_embeds)
    if kind == "sdxl":
        assert torch.equal(plain.pooled_prompt_embeds, chunked.pooled_prompt_embeds)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@torch.inference_mode()
def test_a_weight_multiplies_its_tokens_and_keeps_the_mean(
    pipes: dict[str, Any], kind: str
) -> None:
    pipe = pipes[kind]
    width = pipe.text_encoder.config.hidden_size  # each encoder keeps a mean of its own
    plain = prompts.encode_text(pipe, kind, "ab", clip_skip=0, negative=False).prompt_embeds
    heavy = prompts.encode_text(pipe, kind, "(ab:1.5)", clip_skip=0, negative=False).prompt_embeds
    factor = heavy[0, 0, 0] / plain[0, 0, 0]
    ratio = heavy[0, 1] / plain[0, 1] / factor
    assert torch.allclose(ratio[:width], torch.tensor(1.5), atol=1e-4)
    assert torch.allclose(heavy[..., :width].mean(), plain[..., :width].mean(), atol=1e-4)


@torch.inference_mode()
def test_a_long_prompt_is_read_to_its_end(pipes: dict[str, Any]) -> None:
    pipe = pipes["sd1"]
    long = "x " * CHUNK_TOKENS + "y z"
    embeds = prompts.encode_text(pipe, "sd1", long, clip_skip=0, negative=False).prompt_embeds
    assert embeds.shape[1] == 2 * 77
    first = prompts.encode_text(pipe, "sd1", "x " * 75, clip_skip=0, negative=False).prompt_embeds
    assert torch.equal(embeds[:, :77], first)
    most = prompts.encode_text(pipe, "sd1", "x" * 5000, clip_skip=0, negative=False).prompt_embeds
    assert most.shape[1] == prompts.MAX_CHUNKS * 77


def paint(engine: Engine, message: dict[str, Any]) -> tuple[np.ndarray, Recorder]:
    line = Recorder()
    engine.run(line, message)
    return np.array(Image.open(line.of("image")[0]["path"])), line


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_long_and_weighted_prompts_paint_on_either_side_of_guidance(
    base: Path, tmp_path: Path, order: Order, kind: str
) -> None:
    folder = make_tiny_sdxl(tmp_path / "xl") if kind == "sdxl" else base
    engine = Engine()

    def made(**changes: Any) -> np.ndarray:
        given = {"architecture": kind, "base_folder": str(folder), "base_sha256": kind}
        return paint(engine, order(**given, **changes))[0]

    long = "a fox, " * 40
    pictures = [
        made(prompt="a fox"),
        made(prompt="a (fox:1.4)"),
        made(prompt=long),
        made(prompt="a fox", negative_prompt=long),
        made(prompt=long, negative_prompt="(dark:1.3)"),
        made(prompt=long + "at night", guidance_scale=1.0),
    ]
    distinct = {picture.tobytes() for picture in pictures}
    assert len(distinct) == len(pictures)
    assert np.array_equal(made(prompt="a fox"), pictures[0])

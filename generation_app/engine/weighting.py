"""Reads the weights that people write into prompts, and cuts long prompts into chunks.

The notation is that of AUTOMATIC1111: ``(word)`` weighs 1.1 times as much, ``((word))`` 1.21 times,
``[word]`` 1/1.1 times, ``(word:1.3)`` exactly 1.3 times; a backslash makes a bracket an ordinary
character. A bracket without its partner is an ordinary character too. No torch: numbers only.

Source: stable-diffusion-webui, modules/prompt_parser.py (the notation), written anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

STEP = 1.1
MAX_WEIGHT = 10.0
MAX_DEPTH = 32
# A chunk of CLIP's 77 positions without its start and its end.
CHUNK_TOKENS = 75
# How far back from the end of a chunk a comma is looked for, so that no phrase is cut in two.
_COMMA_REACH = 20

_TOKEN = re.compile(r"\\[\\()\[\]]|[()\[\]]|[^\\()\[\]]+|\\")
_STATED = re.compile(r"^(.*):\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*$", re.DOTALL)
_PARTNERS = {")": "(", "]": "["}


@dataclass
class Fragment:
    """A part of a prompt and its weight."""

    text: str
    weight: float = 1.0


@dataclass
class _Opened:
    bracket: str
    at: int  # index of the fragment that holds the bracket itself


def parse(prompt: str) -> list[Fragment]:
    """Split a prompt into fragments of one weight each.

    Args:
        prompt: Whatever somebody wrote.

    Returns:
        The fragments in order, neighbours of one weight joined; together they hold all the words.
        A prompt without any weight is one fragment.
    """
    fragments: list[Fragment] = []
    opened: list[_Opened] = []
    for token in _TOKEN.findall(prompt):
        if token in ("(", "[") and len(opened) < MAX_DEPTH:
            opened.append(_Opened(token, len(fragments)))
            fragments.append(Fragment(token))
        elif token in _PARTNERS and opened and opened[-1].bracket == _PARTNERS[token]:
            _close(fragments, opened.pop())
        elif token in ("\\(", "\\)", "\\[", "\\]", "\\\\"):
            fragments.append(Fragment(token[1]))
        else:
            fragments.append(Fragment(token))
    return _joined(fragments)


def _close(fragments: list[Fragment], opened: _Opened) -> None:
    """Weigh what stands between two partners, and take the opening one out of the text."""
    inside = fragments[opened.at + 1 :]
    factor = STEP if opened.bracket == "(" else 1 / STEP
    if opened.bracket == "(" and inside and (stated := _STATED.match(inside[-1].text)):
        inside[-1].text = stated[1]
        factor = float(stated[2])
    for fragment in inside:
        fragment.weight = max(-MAX_WEIGHT, min(MAX_WEIGHT, fragment.weight * factor))
    fragments[opened.at].text = ""


def _joined(fragments: list[Fragment]) -> list[Fragment]:
    found: list[Fragment] = []
    for fragment in fragments:
        if not fragment.text:
            continue
        if found and found[-1].weight == fragment.weight:
            found[-1].text += fragment.text
        else:
            found.append(fragment)
    return found or [Fragment("")]


@dataclass(frozen=True)
class Chunk:
    """At most ``CHUNK_TOKENS`` tokens and what each weighs."""

    tokens: tuple[int, ...]
    weights: tuple[float, ...]


def chunks_of(
    fragments: Sequence[Fragment], tokenize: Callable[[str], list[int]], comma: int | None
) -> list[Chunk]:
    """Cut a prompt into chunks that a text encoder reads one by one.

    Args:
        fragments: What ``parse`` returned.
        tokenize: Text to tokens, without start and end.
        comma: The token of a comma, behind which a chunk is cut if one is near; None for nowhere.

    Returns:
        The chunks, at least one.
    """
    tokens: list[int] = []
    weights: list[float] = []
    for fragment in fragments:
        found = tokenize(fragment.text)
        tokens += found
        weights += [fragment.weight] * len(found)
    chunks: list[Chunk] = []
    at = 0
    while at < len(tokens) or not chunks:
        end = _end_of_chunk(tokens, at, comma)
        chunks.append(Chunk(tuple(tokens[at:end]), tuple(weights[at:end])))
        at = end
    return chunks


def _end_of_chunk(tokens: list[int], at: int, comma: int | None) -> int:
    end = at + CHUNK_TOKENS
    if end >= len(tokens):
        return len(tokens)
    for candidate in range(end, end - _COMMA_REACH, -1):
        if tokens[candidate - 1] == comma:
            return candidate
    return end

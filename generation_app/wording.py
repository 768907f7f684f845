"""What people write into prompts for the site to act on: variations and LoRAs.

`{red|blue} fox` asks for a picture of each; `<lora:name:0.8>` puts a LoRA to work. Weights such as
`(fox:1.2)` stay in the prompt: the engine reads them. What does not fit the notation is ordinary
text. No Django and no database here.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_LORA = re.compile(r"<lora:([^:<>]+)(?::([^:<>]*))?(?::[^<>]*)?>")
_BRACE = re.compile(r"\\[{}|]|[{}|]|[^\\{}|]+|\\")
MAX_DEPTH = 16


class TooManyVariations(Exception):
    """A prompt means more pictures than may be asked for."""

    def __init__(self, count: int) -> None:
        super().__init__(str(count))
        self.count = count


@dataclass(frozen=True)
class LoraTag:
    """A LoRA as it is named in a prompt; the weight is a text if it is no number."""

    name: str
    weight: float | str


def take_loras(prompt: str) -> tuple[str, list[LoraTag]]:
    """Take the LoRAs out of a prompt.

    Returns:
        The prompt without them and the blanks before them, and them; a second weight, for the text
        encoder, is passed over.
    """
    tags, kept, end = [], [], 0
    for match in _LORA.finditer(prompt):
        name, weight = match.groups()
        try:
            number: float | str = float(weight) if weight else 1.0
        except ValueError:
            number = weight
        tags.append(LoraTag(name.strip(), number))
        kept.append(prompt[end : match.start()].rstrip())
        end = match.end()
    return ("".join([*kept, prompt[end:]]).strip() if tags else prompt), tags


@dataclass(frozen=True)
class _Choice:
    """Alternatives, each a sequence of texts and further choices."""

    options: tuple[tuple[_Part, ...], ...]


_Part = str | _Choice


def variations(prompt: str, *, most: int) -> list[str]:
    """Write out every combination of a prompt's alternatives.

    Args:
        prompt: With `{a|b}`, which may lie inside one another; a backslash makes a brace ordinary.
        most: How many there may be.

    Returns:
        At least one prompt, in the order in which they are written: the last choice turns fastest.

    Raises:
        TooManyVariations: There are more; nothing was written out.
    """
    parts = _parse(prompt)
    count = _count(parts)
    if count > most:
        raise TooManyVariations(count)
    return _expand(parts)


def _parse(prompt: str) -> tuple[_Part, ...]:
    """Read alternatives with a stack of what is open; what is never closed is text."""
    # Each level: the options read so far, and the one that is being read.
    levels: list[tuple[list[list[_Part]], list[_Part]]] = [([], [])]
    for piece in _BRACE.findall(prompt):
        options, current = levels[-1]
        if piece == "{" and len(levels) <= MAX_DEPTH:
            levels.append(([], []))
        elif piece == "|" and len(levels) > 1:
            options.append(current)
            levels[-1] = (options, [])
        elif piece == "}" and len(levels) > 1:
            levels.pop()
            levels[-1][1].extend(_closed([*options, current]))
        else:
            current.append(piece[1] if len(piece) == 2 and piece[0] == "\\" else piece)
    while len(levels) > 1:
        options, current = levels.pop()
        levels[-1][1].extend(["{", *_between([*options, current])])
    return tuple(levels[0][1])


def _closed(options: list[list[_Part]]) -> list[_Part]:
    """Return a choice; braces around a single option are text."""
    if len(options) == 1:
        return ["{", *options[0], "}"]
    return [_Choice(tuple(tuple(option) for option in options))]


def _between(options: list[list[_Part]]) -> list[_Part]:
    found: list[_Part] = list(options[0])
    for option in options[1:]:
        found += ["|", *option]
    return found


def _count(parts: tuple[_Part, ...]) -> int:
    return math.prod(
        sum(_count(option) for option in part.options)
        for part in parts
        if isinstance(part, _Choice)
    )


def _expand(parts: tuple[_Part, ...]) -> list[str]:
    found = [""]
    for part in parts:
        endings = (
            [part]
            if isinstance(part, str)
            else [text for option in part.options for text in _expand(option)]
        )
        found = [text + ending for text in found for ending in endings]
    return found

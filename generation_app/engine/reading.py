"""Reads the values of one request field by field and collects what is wrong with them.

Which fields a mode takes, and what they are when nothing is said, stands in ``request``.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from generation_app.engine.errors import FieldProblem
from generation_app.engine.vocabulary import (
    LORA_ALIASES,
    OUTPUT_FORMATS,
    SCHEDULERS,
    UPSCALERS,
    NamedFields,
    canonical_scheduler,
)

SEED_COUNT = 2**32
SIZE_FACTOR = 8


@dataclass(frozen=True)
class Limits:
    """Bounds of a request; a site may lower or raise those that cost memory and time."""

    min_side: int = 64
    max_side: int = 2048
    max_pixels: int = 2048 * 2048
    max_steps: int = 150
    max_guidance_scale: float = 30.0
    max_images: int = 8
    max_prompt_characters: int = 2000
    max_loras: int = 8
    max_lora_weight: float = 4.0
    max_clip_skip: int = 11
    max_hires_scale: float = 4.0
    max_mask_blur: int = 64
    max_frames: int = 50
    max_fps: int = 30


@dataclass(frozen=True)
class LoraChoice:
    """A LoRA by id or name, and how strongly it acts (1 = as trained, negative = away from it)."""

    model: int | str
    weight: float = 1.0


class Reader:
    """Reads one request; ``problems`` holds what was wrong with it."""

    def __init__(self, fields: NamedFields, limits: Limits) -> None:
        self.values = fields.values
        self.sent_as = fields.sent_as
        self.limits = limits
        self.problems: list[FieldProblem] = []

    def read(self, name: str) -> Any:
        """Return the value of one field; where it is wrong, a stand-in and one more problem."""
        return _READERS[name](self, name)

    def fail(self, name: str, code: str, **params: Any) -> None:
        """Note that a field is wrong, under the name by which it was sent."""
        self.problems.append(FieldProblem(self.sent_as.get(name, name), code, params))

    def text(self, name: str) -> str:
        """Read a text that a database and a file can hold."""
        value = self.values[name]
        if not isinstance(value, str):
            self.fail(name, "not_text")
            return ""
        maximum = self.limits.max_prompt_characters
        if len(value) > maximum:
            self.fail(name, "too_long", maximum=maximum, length=len(value))
        # NUL cannot be stored by PostgreSQL, a lone surrogate cannot be written as UTF-8.
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            self.fail(name, "invalid_characters")
        return value.replace("\r\n", "\n")

    def integer(self, name: str, *, low: int, high: int, factor: int = 1) -> int:
        """Read a whole number from ``low`` to ``high``."""
        value = self.values[name]
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not whole:
            self.fail(name, "not_an_integer")
            return low
        value = int(value)
        if not low <= value <= high:
            self.fail(name, "out_of_range", minimum=low, maximum=high)
        elif value % factor:
            self.fail(name, "not_a_multiple", factor=factor)
        return value

    def number(self, name: str, low: float, high: float) -> float:
        """Read a finite number from ``low`` to ``high``."""
        value = self.values[name]
        if not _is_finite(value):
            self.fail(name, "not_a_number")
            return low
        if not low <= value <= high:
            self.fail(name, "out_of_range", minimum=f"{low:g}", maximum=f"{high:g}")
        return float(value)

    def choice(self, name: str, choices: Mapping[str, str]) -> str:
        """Read one of several words; ``choices`` maps every spelling to ours."""
        value = self.values[name]
        found = choices.get(value.lower()) if isinstance(value, str) else None
        if found is None:
            names = ", ".join(dict.fromkeys(choices.values()))
            self.fail(name, "unknown_choice", choices=names)
            return next(iter(choices.values()))
        return found

    def scheduler(self, name: str) -> str:
        """Read a noise scheduler by any of its names."""
        value = self.values[name]
        found = canonical_scheduler(value) if isinstance(value, str) else None
        if found is None:
            self.fail(name, "unknown_scheduler", choices=", ".join(SCHEDULERS))
            return "dpmpp_2m"
        return found

    def seed(self, name: str) -> int:
        """Read a seed, or draw one."""
        value = self.values.get(name, -1)
        if value == -1 and not isinstance(value, bool):
            return secrets.randbelow(SEED_COUNT)
        self.values[name] = value
        return self.integer(name, low=0, high=SEED_COUNT - 1)

    def loras(self, name: str) -> tuple[LoraChoice, ...]:
        """Read the list of LoRAs."""
        entries = self.values[name]
        if not isinstance(entries, (list, tuple)):
            self.fail(name, "not_a_list")
            return ()
        if len(entries) > self.limits.max_loras:
            self.fail(name, "too_many_loras", maximum=self.limits.max_loras)
            return ()
        choices = [choice for entry in entries if (choice := self._lora(entry)) is not None]
        seen: set[int | str] = set()
        for choice in choices:
            if choice.model in seen:
                self.fail(name, "duplicate_lora", model=choice.model)
            seen.add(choice.model)
        return tuple(choices)

    def _lora(self, entry: Any) -> LoraChoice | None:
        if isinstance(entry, LoraChoice):
            return entry
        if not isinstance(entry, Mapping):
            self.fail("loras", "invalid_lora")
            return None
        named = {LORA_ALIASES.get(key, key): value for key, value in entry.items()}
        model, weight = named.get("model"), named.get("weight", 1.0)
        is_reference = isinstance(model, (int, str)) and not isinstance(model, bool) and model != ""
        if not is_reference or set(named) - {"model", "weight"} or len(named) != len(entry):
            self.fail("loras", "invalid_lora")
            return None
        bound = self.limits.max_lora_weight
        if not _is_finite(weight):
            self.fail("loras", "not_a_number")
            return None
        if abs(weight) > bound:
            self.fail("loras", "out_of_range", minimum=f"{-bound:g}", maximum=f"{bound:g}")
            return None
        return LoraChoice(model if isinstance(model, int) else str(model), float(weight))


def _side(reader: Reader, name: str) -> int:
    limits = reader.limits
    return reader.integer(name, low=limits.min_side, high=limits.max_side, factor=SIZE_FACTOR)


def _whole(low: int, high: int | str) -> Callable[[Reader, str], int]:
    """Read a whole number; a bound may be the name of a limit."""

    def read(reader: Reader, name: str) -> int:
        top = high if isinstance(high, int) else int(getattr(reader.limits, high))
        return reader.integer(name, low=low, high=top)

    return read


def _real(low: float, high: float | str) -> Callable[[Reader, str], float]:
    """Read a finite number; a bound may be the name of a limit."""

    def read(reader: Reader, name: str) -> float:
        top = getattr(reader.limits, high) if isinstance(high, str) else high
        return reader.number(name, low, top)

    return read


_READERS: dict[str, Callable[[Reader, str], Any]] = {
    "prompt": Reader.text,
    "negative_prompt": Reader.text,
    "width": _side,
    "height": _side,
    "num_inference_steps": _whole(1, "max_steps"),
    "guidance_scale": _real(0.0, "max_guidance_scale"),
    "scheduler": Reader.scheduler,
    "seed": Reader.seed,
    "num_images": _whole(1, "max_images"),
    "loras": Reader.loras,
    "clip_skip": _whole(0, "max_clip_skip"),
    "output_format": lambda reader, name: reader.choice(name, OUTPUT_FORMATS),
    "strength": _real(0.0, 1.0),
    "mask_blur": _whole(0, "max_mask_blur"),
    "hires_scale": _real(1.0, "max_hires_scale"),
    "hires_strength": _real(0.0, 1.0),
    "hires_steps": _whole(0, "max_steps"),
    "hires_upscaler": lambda reader, name: reader.choice(name, UPSCALERS),
    "num_frames": _whole(2, "max_frames"),
    "fps": _whole(1, "max_fps"),
    "motion_bucket_id": _whole(0, 255),
    "noise_aug_strength": _real(0.0, 1.0),
    "decode_chunk_size": _whole(1, "max_frames"),
    "min_guidance_scale": _real(1.0, "max_guidance_scale"),
    "max_guidance_scale": _real(1.0, "max_guidance_scale"),
}


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of a float
        return False

"""What may be asked of the generator: bounds, defaults and their resolution.

The site, the API and the engine share this module, so a bound is stated once. It checks values; it
does not look anything up (which model a name means is the site's business) and imports no torch.
"""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from generation_app.engine.errors import FieldProblem, RequestError
from generation_app.engine.vocabulary import (
    LORA_ALIASES,
    SCHEDULERS,
    NamedFields,
    canonical_scheduler,
    name_fields,
)

__all__ = [
    "ARCHITECTURE_DEFAULTS",
    "SCHEDULERS",
    "GenerationRequest",
    "Limits",
    "LoraChoice",
    "RequestError",
    "image_seeds",
    "resolve_request",
]

SEED_COUNT = 2**32
SIZE_FACTOR = 8

ARCHITECTURE_DEFAULTS: dict[str, dict[str, Any]] = {
    "sd1": {"width": 512, "height": 512},
    "sd2": {"width": 768, "height": 768},
    "sdxl": {"width": 1024, "height": 1024},
}
_COMMON_DEFAULTS: dict[str, Any] = {
    "prompt": "",
    "negative_prompt": "",
    "num_inference_steps": 25,
    "guidance_scale": 7.0,
    "scheduler": "dpmpp_2m",
    "num_images": 1,
    "loras": [],
    "clip_skip": 0,
}


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


@dataclass(frozen=True)
class LoraChoice:
    """A LoRA by id or name, and how strongly it acts (1 = as trained, negative = away from it)."""

    model: int | str
    weight: float = 1.0


@dataclass(frozen=True)
class GenerationRequest:
    """A request with every value resolved; the same request makes the same pictures.

    ``clip_skip`` counts as diffusers does: 0 takes the last layer of the text encoder, 1 the one
    before it. Image *i* uses ``seeds[i]`` and can be made again alone with it.
    """

    prompt: str
    negative_prompt: str
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    seed: int
    num_images: int
    loras: tuple[LoraChoice, ...]
    clip_skip: int

    @property
    def seeds(self) -> list[int]:
        """One seed for each image."""
        return image_seeds(self.seed, self.num_images)

    def as_parameters(self) -> dict[str, Any]:
        """Return the values as plain JSON, under the names a request uses."""
        return {**dataclasses.asdict(self), "loras": [dataclasses.asdict(x) for x in self.loras]}


def image_seeds(seed: int, count: int) -> list[int]:
    """Return the seeds of a request's images: ``seed + i``, going round at 2³²."""
    return [(seed + index) % SEED_COUNT for index in range(count)]


# What a request may name: its own fields, and the model, which the site resolves before this runs.
FIELD_NAMES = frozenset(field.name for field in dataclasses.fields(GenerationRequest))
_KNOWN = FIELD_NAMES | {"model"}


def resolve_request(
    body: Mapping[str, Any],
    *,
    architecture: str,
    defaults: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
) -> GenerationRequest:
    """Check a request and fill in what it leaves open.

    Args:
        body: Field names (ours or known aliases) and values; ``model`` is accepted and not read.
        architecture: The family of the base model (``sd1``, ``sd2``, ``sdxl``).
        defaults: The model's own defaults; names that are not fields of a request are skipped.
        limits: The bounds; None for the ordinary ones.

    Returns:
        The resolved request; a random seed is drawn here.

    Raises:
        RequestError: Something is unknown, contradictory or out of bounds; it names each field.
    """
    if not isinstance(body, Mapping):
        raise RequestError(FieldProblem("", "not_an_object"))
    if architecture not in ARCHITECTURE_DEFAULTS:
        raise RequestError(FieldProblem("model", "architecture_unsupported"))
    fields = name_fields(body, _KNOWN)
    own = {k: v for k, v in (defaults or {}).items() if k in FIELD_NAMES and v is not None}
    fields.values = {
        **_COMMON_DEFAULTS,
        **ARCHITECTURE_DEFAULTS[architecture],
        **own,
        **fields.values,
    }
    return _Reader(fields, limits or Limits()).read()


class _Reader:
    """Reads one request field by field and collects what is wrong with it."""

    def __init__(self, fields: NamedFields, limits: Limits) -> None:
        self.values = fields.values
        self.sent_as = fields.sent_as
        self.limits = limits
        self.problems: list[FieldProblem] = []

    def read(self) -> GenerationRequest:
        limits = self.limits
        side = {"low": limits.min_side, "high": limits.max_side, "factor": SIZE_FACTOR}
        request = GenerationRequest(
            prompt=self.text("prompt"),
            negative_prompt=self.text("negative_prompt"),
            width=self.integer("width", **side),
            height=self.integer("height", **side),
            num_inference_steps=self.integer("num_inference_steps", low=1, high=limits.max_steps),
            guidance_scale=self.number("guidance_scale", 0.0, limits.max_guidance_scale),
            scheduler=self.scheduler(),
            seed=self.seed(),
            num_images=self.integer("num_images", low=1, high=limits.max_images),
            loras=self.loras(),
            clip_skip=self.integer("clip_skip", low=0, high=limits.max_clip_skip),
        )
        pixels = request.width * request.height
        if not self.problems and pixels > limits.max_pixels:
            self.fail("width", "too_many_pixels", maximum=limits.max_pixels, pixels=pixels)
        if self.problems:
            raise RequestError(*self.problems)
        return request

    def fail(self, name: str, code: str, **params: Any) -> None:
        self.problems.append(FieldProblem(self.sent_as.get(name, name), code, params))

    def text(self, name: str) -> str:
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
        value = self.values[name]
        if not _is_finite(value):
            self.fail(name, "not_a_number")
            return low
        if not low <= value <= high:
            self.fail(name, "out_of_range", minimum=f"{low:g}", maximum=f"{high:g}")
        return float(value)

    def scheduler(self) -> str:
        value = self.values["scheduler"]
        found = canonical_scheduler(value) if isinstance(value, str) else None
        if found is None:
            self.fail("scheduler", "unknown_scheduler", choices=", ".join(SCHEDULERS))
            return "dpmpp_2m"
        return found

    def seed(self) -> int:
        value = self.values.get("seed", -1)
        if value == -1 and not isinstance(value, bool):
            return secrets.randbelow(SEED_COUNT)
        self.values["seed"] = value
        return self.integer("seed", low=0, high=SEED_COUNT - 1)

    def loras(self) -> tuple[LoraChoice, ...]:
        entries = self.values["loras"]
        if not isinstance(entries, (list, tuple)):
            self.fail("loras", "not_a_list")
            return ()
        if len(entries) > self.limits.max_loras:
            self.fail("loras", "too_many_loras", maximum=self.limits.max_loras)
            return ()
        choices = [choice for entry in entries if (choice := self.lora(entry)) is not None]
        seen: set[int | str] = set()
        for choice in choices:
            if choice.model in seen:
                self.fail("loras", "duplicate_lora", model=choice.model)
            seen.add(choice.model)
        return tuple(choices)

    def lora(self, entry: Any) -> LoraChoice | None:
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


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of a float
        return False

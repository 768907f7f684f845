"""What can go wrong with a request, as codes with parameters.

The English sentences stand here once; they are marked for the message catalogue, and whoever shows
them translates ``MESSAGES[code]`` and fills in ``params``. No torch, no Django.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from studio_project.child_protocol import ChildError


def gettext_noop(message: str) -> str:
    """Mark a sentence for the message catalogue without translating it here."""
    return message


MESSAGES: dict[str, str] = {
    "unknown_field": gettext_noop("There is no field “%(field)s”."),
    "conflicting_fields": gettext_noop(
        "“%(field)s” and “%(other)s” mean the same and differ: give one of them."
    ),
    "required": gettext_noop("This value is needed."),
    "not_text": gettext_noop("This has to be text."),
    "invalid_characters": gettext_noop("The text contains characters that cannot be stored."),
    "too_long": gettext_noop("At most %(maximum)s characters; these are %(length)s."),
    "not_an_integer": gettext_noop("This has to be a whole number."),
    "not_a_number": gettext_noop("This has to be a finite number."),
    "out_of_range": gettext_noop("Choose a value from %(minimum)s to %(maximum)s."),
    "not_a_multiple": gettext_noop("This has to be a multiple of %(factor)s."),
    "too_many_pixels": gettext_noop(
        "Width times height is at most %(maximum)s pixels; this would be %(pixels)s."
    ),
    "too_large": gettext_noop("Enlarged so far, a side would be longer than %(maximum)s pixels."),
    "strength_too_small": gettext_noop(
        "With %(steps)s steps, choose at least %(minimum)s: else not even one step is taken."
    ),
    "unknown_choice": gettext_noop("Choose one of: %(choices)s."),
    "unknown_scheduler": gettext_noop("Unknown scheduler. Choose one of: %(choices)s."),
    "not_a_size": gettext_noop("Write a size as WIDTHxHEIGHT, for example 512x512."),
    "not_a_list": gettext_noop("This has to be a list."),
    "too_many_loras": gettext_noop("At most %(maximum)s LoRAs at a time."),
    "invalid_lora": gettext_noop("Each LoRA is an object with “model” and, if you like, “weight”."),
    "duplicate_lora": gettext_noop("The LoRA “%(model)s” is listed twice."),
    "not_an_object": gettext_noop("The request has to be an object with named fields."),
    "architecture_unsupported": gettext_noop("This needs a model of another family: %(families)s."),
}


@dataclass(frozen=True)
class FieldProblem:
    """One thing wrong with one field of a request.

    Attributes:
        field: The name as the sender wrote it ("" for the request as a whole).
        code: A key of ``MESSAGES``.
        params: What the sentence's placeholders stand for.
    """

    field: str
    code: str
    params: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def message(self) -> str:
        """The English sentence."""
        return MESSAGES[self.code] % self.params


class RequestError(ValueError):
    """A request cannot be served as it stands; nothing has been done.

    ``problems`` holds everything found; ``field``, ``code``, ``params`` and ``message`` are those
    of the first.
    """

    def __init__(self, *problems: FieldProblem) -> None:
        first = problems[0]
        super().__init__(f"{first.field}: {first.message}")
        self.problems = problems
        self.field = first.field
        self.code = first.code
        self.params = first.params
        self.message = first.message


class EngineError(ChildError):
    """A request failed for a reason that has a code; the engine itself stays well.

    Codes: ``invalid_request, mode_unavailable, model_unavailable, model_incompatible,
    non_finite_image, out_of_memory, disk_full, internal``.
    """

    def __str__(self) -> str:
        return f"{self.code} {self.params}"


class StoppedError(Exception):
    """The request was asked to stop; ``how`` says why (``cancel``, ``yield`` …)."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how

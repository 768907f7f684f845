"""The fields of the generate page: labels, help and the groups they fold into.

Names, bounds and defaults come from `generation_app.engine`, the one place that states them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from generation_app.engine.request import MODES, Limits, resolve_request
from generation_app.engine.vocabulary import SCHEDULERS
from studio_project.models import User

Words = str | Promise


@dataclass(frozen=True)
class ParameterField:
    """One parameter as the form shows it: its name, its words and its bounds."""

    name: str
    label: Words
    help: Words
    kind: str = "number"
    minimum: float = 0
    maximum: float = 0
    step: str = "1"
    choices: tuple[tuple[str, str], ...] = ()


def size_fields(user: User) -> list[ParameterField]:
    """Return size and count, within what this user may ask for."""
    limits = Limits()
    side: dict[str, Any] = {"minimum": limits.min_side, "maximum": limits.max_side, "step": "8"}
    return [
        ParameterField("width", _("Width"), _("In pixels; a multiple of 8."), **side),
        ParameterField("height", _("Height"), _("In pixels; a multiple of 8."), **side),
        ParameterField(
            "num_images",
            _("Pictures"),
            _("Each gets the next seed."),
            minimum=1,
            maximum=user.max_images_per_request,
        ),
    ]


def quality_fields() -> list[ParameterField]:
    """Return what decides how well and how closely a picture is painted."""
    limits = Limits()
    return [
        ParameterField(
            "num_inference_steps",
            _("Steps"),
            _("More steps paint finer and take longer; beyond 30 little changes."),
            minimum=1,
            maximum=limits.max_steps,
        ),
        ParameterField(
            "guidance_scale",
            _("Guidance"),
            _("How closely the picture follows the prompt. Too high looks harsh."),
            maximum=limits.max_guidance_scale,
            step="0.5",
        ),
        ParameterField(
            "scheduler",
            _("Sampler"),
            _("The way noise becomes a picture; they differ in speed and grain."),
            kind="choice",
            choices=tuple((name, words.title) for name, words in SCHEDULERS.items()),
        ),
    ]


def defaults_by_architecture() -> dict[str, dict[str, Any]]:
    """Return what a request without values resolves to, for each family of models."""
    kept = (
        "width",
        "height",
        "num_images",
        "num_inference_steps",
        "guidance_scale",
        "scheduler",
        "clip_skip",
    )
    found = {}
    for architecture in MODES["text-to-image"].architectures:
        request = resolve_request({}, architecture=architecture).as_parameters()
        found[architecture] = {name: request[name] for name in kept}
    return found

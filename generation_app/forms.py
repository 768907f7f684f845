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
    choices: tuple[tuple[str, Words], ...] = ()


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


def shapes() -> list[tuple[str, Words]]:
    """Return the shapes that are offered: width divided by height, and its words."""
    return [
        ("1", _("Square (1:1)")),
        ("0.75", _("Portrait (3:4)")),
        ("0.5625", _("Portrait (9:16)")),
        ("1.333333", _("Landscape (4:3)")),
        ("1.777778", _("Landscape (16:9)")),
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


def strength_field() -> ParameterField:
    """Return how much of a picture is painted anew."""
    return ParameterField(
        "strength",
        _("Strength"),
        _("How much is painted anew: a little keeps the picture, 1 keeps only its place."),
        kind="range",
        minimum=0.05,
        maximum=1,
        step="0.05",
    )


def hires_fields() -> list[ParameterField]:
    """Return how a picture is enlarged and refined."""
    limits = Limits()
    return [
        ParameterField(
            "hires_scale",
            _("Enlarge by"),
            _("Both sides grow so many times."),
            kind="range",
            minimum=1.25,
            maximum=limits.max_hires_scale,
            step="0.25",
        ),
        ParameterField(
            "hires_strength",
            _("Refine"),
            _("How much detail is painted anew in the second pass."),
            kind="range",
            minimum=0.05,
            maximum=1,
            step="0.05",
        ),
        ParameterField(
            "hires_upscaler",
            _("Enlarge with"),
            _("Latents give more new detail and need more refining."),
            kind="choice",
            choices=(("lanczos", _("Pixels (Lanczos)")), ("latent", _("Latents"))),
        ),
    ]


def video_fields() -> list[ParameterField]:
    """Return what decides how a picture moves."""
    limits = Limits()
    return [
        ParameterField(
            "num_frames",
            _("Frames"),
            _("How long the clip is: frames divided by frames a second."),
            minimum=2,
            maximum=limits.max_frames,
        ),
        ParameterField(
            "fps", _("Frames a second"), _("How fast they follow."), minimum=1,
            maximum=limits.max_fps,
        ),
        ParameterField(
            "motion_bucket_id",
            _("Motion"),
            _("More moves more; 127 is usual."),
            kind="range",
            maximum=255,
        ),
        ParameterField(
            "noise_aug_strength",
            _("Freedom"),
            _("Noise on the picture: more lets the clip leave it further."),
            kind="range",
            maximum=1,
            step="0.01",
        ),
    ]  # fmt: skip


def format_field() -> ParameterField:
    """Return what kind of file a picture becomes."""
    return ParameterField(
        "output_format",
        _("File"),
        _("PNG and WebP keep every pixel; JPEG is smaller."),
        kind="choice",
        choices=(("png", "PNG"), ("webp", "WebP"), ("jpeg", "JPEG")),
    )


def defaults_by_architecture() -> dict[str, dict[str, Any]]:
    """Return what requests without values resolve to, for each family of models, over all modes."""
    found: dict[str, dict[str, Any]] = {}
    for name, mode in MODES.items():
        for architecture in mode.architectures:
            values = resolve_request({}, architecture=architecture, mode=name).as_parameters()
            for dropped in ("seed", "loras", "prompt", "negative_prompt"):
                values.pop(dropped, None)
            found.setdefault(architecture, {}).update(values)
    for values in found.values():
        # What the switch stands at when somebody turns the second pass on.
        if "hires_scale" in values:
            values["hires_scale"] = 2.0
    return found

"""The fields of the training form: labels, help and units for the settings of a training.

Names, bounds and choices come from `training_app.trainer.config`, the one place that states them;
the values shown as defaults are what `resolve_config` answers for the chosen base and dataset.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from training_app.trainer.config import FIELDS

Words = str | Promise


@dataclass(frozen=True)
class ParameterField:
    """One setting as the form shows it.

    Attributes:
        name: Its name in the API.
        label: What it is called.
        help: One line that says what it does.
        unit: What it counts in, or "".
        kind: `number`, `choice`, `text`, `texts` or `flag`.
        minimum: Smallest number.
        maximum: Largest number.
        step: Step of the control, `any` for fractions.
        maximum_length: Characters at most.
        choices: Values with their labels.
    """

    name: str
    label: Words
    help: Words
    unit: Words = ""
    kind: str = "number"
    minimum: float | None = None
    maximum: float | None = None
    step: str = "any"
    maximum_length: int | None = None
    choices: tuple[tuple[str, Words], ...] = ()


CHOICE_LABELS: Mapping[str, Words] = {
    "constant": _("Constant"),
    "linear": _("Falling in a line"),
    "cosine": _("Falling in a curve (cosine)"),
    "auto": _("Automatic"),
    "no": _("32 bit"),
    "bf16": _("16 bit (bfloat16)"),
    "attention": _("Attention only"),
    "attention+feed_forward": _("Attention and feed-forward"),
    "all": _("All layers, convolutions included"),
}
# Name: label, help, unit.
_WORDS: Mapping[str, tuple[Words, Words, Words]] = {
    "max_train_steps": (
        _("Steps"),
        _("How long it trains. More steps follow the pictures closer."),
        "",
    ),
    "learning_rate": (
        _("Learning rate"),
        _("How far each step goes. Too high becomes noise, too low learns nothing."),
        "",
    ),
    "rank": (_("Rank"), _("How much the LoRA can hold, and how large its file is."), ""),
    "alpha": (_("Alpha"), _("Strength of the LoRA; it acts with alpha divided by rank."), ""),
    "train_batch_size": (_("Batch size"), _("Pictures looked at together; costs memory."), ""),
    "gradient_accumulation_steps": (
        _("Accumulated batches"),
        _("Batches put together into one step; a larger batch without more memory."),
        "",
    ),
    "resolution": (
        _("Resolution"),
        _("Side of a square with the area that pictures are trained at."),
        _("pixels"),
    ),
    "seed": (
        _("Seed"),
        _("The number that all chance in the run follows; the same seed repeats it."),
        "",
    ),
    "lr_scheduler": (
        _("Course of the learning rate"),
        _("What happens to the learning rate after the warm-up."),
        "",
    ),
    "lr_warmup_steps": (
        _("Warm-up"),
        _("Steps in which the learning rate rises to its peak."),
        _("steps"),
    ),
    "weight_decay": (_("Weight decay"), _("Pulls the weights towards zero."), ""),
    "max_grad_norm": (
        _("Gradient clipping"),
        _("Norm that a step's gradients are cut to; 0 does not cut."),
        "",
    ),
    "mixed_precision": (_("Precision"), _("How the network computes; the LoRA stays exact."), ""),
    "flip": (
        _("Mirror pictures"),
        _("Shows each picture mirrored as well. Not for faces, letters or anything with a side."),
        "",
    ),
    "caption_dropout": (
        _("Captions left out"),
        _("Share of captions replaced by nothing, which keeps guidance working."),
        "",
    ),
    "snr_gamma": (
        _("Min-SNR gamma"),
        _("Weighs easy and hard noise levels against each other; 0 weighs all alike."),
        "",
    ),
    "targets": (_("Layers"), _("Which layers of the network learn."), ""),
    "sample_prompts": (
        _("Sample prompts"),
        _("One per line. Empty: taken from the captions."),
        "",
    ),
    "control_prompt": (
        _("Control prompt"),
        _("A prompt without the trigger word; its sample shows what the base model loses."),
        "",
    ),
    "sample_every_steps": (
        _("Samples every"),
        _("Steps between sample pictures; 0 paints them at the end only."),
        _("steps"),
    ),
    "sample_inference_steps": (
        _("Steps per sample"),
        _("Denoising steps of a sample picture."),
        "",
    ),
    "sample_guidance_scale": (
        _("Guidance of samples"),
        _("How closely a sample follows its prompt."),
        "",
    ),
}
GROUPS: tuple[tuple[Words, tuple[str, ...]], ...] = (
    (
        _("How long and how strong"),
        (
            "max_train_steps",
            "learning_rate",
            "rank",
            "alpha",
            "lr_scheduler",
            "lr_warmup_steps",
        ),
    ),
    (
        _("How pictures are shown"),
        (
            "resolution",
            "train_batch_size",
            "gradient_accumulation_steps",
            "caption_dropout",
            "flip",
            "seed",
        ),
    ),
    (
        _("Samples"),
        (
            "sample_prompts",
            "control_prompt",
            "sample_every_steps",
            "sample_inference_steps",
            "sample_guidance_scale",
        ),
    ),
    (
        _("For experts"),
        ("targets", "mixed_precision", "weight_decay", "max_grad_norm", "snr_gamma"),
    ),
)
PRESETS: tuple[tuple[str, Words, Words], ...] = (
    (
        "character",
        _("Character"),
        _("Somebody or some creature that must look the same in every picture."),
    ),
    ("style", _("Style"), _("A way of drawing or painting, whatever the picture shows.")),
    ("object", _("Object"), _("A thing: a product, a toy, a building.")),
)


def parameter_field(name: str) -> ParameterField:
    """Return one setting with its words and the bounds that the configuration states."""
    field = FIELDS[name]
    label, help_line, unit = _WORDS[name]
    about = field.metadata
    words: dict[str, Any] = {"name": name, "label": label, "help": help_line, "unit": unit}
    if "choices" in about:
        choices = tuple((value, CHOICE_LABELS.get(value, value)) for value in about["choices"])
        return ParameterField(**words, kind="choice", choices=choices)
    if field.type == "bool":
        return ParameterField(**words, kind="flag")
    if "maximum_count" in about:
        return ParameterField(**words, kind="texts")
    if "maximum_length" in about:
        return ParameterField(**words, kind="text", maximum_length=about["maximum_length"])
    return ParameterField(
        **words,
        minimum=about["minimum"],
        maximum=about["maximum"],
        step="1" if field.type == "int" else "any",
    )


def expert_groups() -> list[tuple[Words, list[ParameterField]]]:
    """Return the expert fields by group, in the order in which the drawer shows them."""
    return [(title, [parameter_field(name) for name in names]) for title, names in GROUPS]

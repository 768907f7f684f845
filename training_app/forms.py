"""The fields of the training form: which settings stand where, and for which method.

Names, bounds and choices come from `training_app.trainer.config`, the one place that states them;
the values shown as defaults are what `resolve_config` answers for the chosen base and dataset.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext_lazy as _

from training_app.setting_words import CHOICE_LABELS, WORDS, Words
from training_app.trainer.config import FIELDS
from training_app.trainer.presets import METHODS


@dataclass(frozen=True)
class ParameterField:
    """One setting as the form shows it.

    Attributes:
        name: Its name in the API.
        label: What it is called.
        help: One line that says what it does.
        unit: What it counts in, or "".
        kind: `number`, `choice`, `text`, `texts` or `flag`.
        maximum_length: Characters at most.
        choices: Values with their labels.
        methods: The methods that know it.
        tune: What must learn for it to matter, or "".
    """

    name: str
    label: Words
    help: Words
    unit: Words = ""
    kind: str = "number"
    maximum_length: int | None = None
    choices: tuple[tuple[str, Words], ...] = ()
    methods: tuple[str, ...] = METHODS
    tune: str = ""


GROUPS: tuple[tuple[Words, tuple[str, ...]], ...] = (
    (
        _("How long and how strong"),
        (
            "max_train_steps",
            "learning_rate",
            "tune",
            "rank",
            "alpha",
            "lr_scheduler",
            "lr_warmup_steps",
        ),
    ),
    (
        _("DreamBooth: your subject and its class"),
        ("instance_prompt", "class_prompt", "prior_loss_weight", "num_class_images"),
    ),
    (
        _("How pictures are shown"),
        (
            "resolution",
            "train_batch_size",
            "gradient_accumulation_steps",
            "crop",
            "crop_variants",
            "flip",
            "seed",
        ),
    ),
    (
        _("How captions are read"),
        (
            "caption_prefix",
            "caption_dropout",
            "shuffle_captions",
            "keep_tokens",
            "caption_variants",
        ),
    ),
    (
        _("Samples and checkpoints"),
        (
            "sample_prompts",
            "control_prompt",
            "sample_every_steps",
            "sample_inference_steps",
            "sample_guidance_scale",
            "validation_images",
            "checkpoint_every_steps",
            "choose",
        ),
    ),
    (
        _("For experts"),
        (
            "targets",
            "dropout",
            "use_dora",
            "train_text_encoder",
            "text_encoder_learning_rate",
            "optimizer",
            "loss",
            "huber_delta",
            "noise_offset",
            "snr_gamma",
            "weight_decay",
            "max_grad_norm",
            "use_ema",
            "ema_decay",
            "mixed_precision",
            "gradient_checkpointing",
            "torch_compile",
            "num_devices",
        ),
    ),
)
METHOD_CARDS: tuple[tuple[str, Words, Words], ...] = (
    (
        "lora",
        _("LoRA"),
        _("A small file on top of the model. Quick, light, and right for nearly everything."),
    ),
    (
        "dreambooth",
        _("DreamBooth"),
        _("Ties one subject to a word, and can keep all others of its kind as they are."),
    ),
    (
        "full",
        _("Full fine-tuning"),
        _("The whole network learns from many pictures. Large, slow, and goes furthest."),
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
# Settings that only some trainings have: by method, or by what learns.
_METHODS: Mapping[str, tuple[str, ...]] = {
    "tune": ("dreambooth",),
    "instance_prompt": ("dreambooth",),
    "class_prompt": ("dreambooth",),
    "prior_loss_weight": ("dreambooth",),
    "num_class_images": ("dreambooth",),
}
_TUNES: Mapping[str, str] = dict.fromkeys(
    ("rank", "alpha", "dropout", "use_dora", "targets"), "adapters"
)


def applies(name: str, method: str, tune: str) -> bool:
    """Say whether a training by this method, in which this learns, has a setting."""
    return method in _METHODS.get(name, METHODS) and _TUNES.get(name, tune) == tune


def parameter_field(name: str) -> ParameterField:
    """Return one setting with its words and what can be given."""
    field = FIELDS[name]
    label, help_line, unit = WORDS[name]
    about = field.metadata
    words: dict[str, Any] = {"name": name, "label": label, "help": help_line, "unit": unit}
    words |= {"methods": _METHODS.get(name, METHODS), "tune": _TUNES.get(name, "")}
    if "choices" in about:
        choices = tuple((value, CHOICE_LABELS.get(value, value)) for value in about["choices"])
        return ParameterField(**words, kind="choice", choices=choices)
    if field.type == "bool":
        return ParameterField(**words, kind="flag")
    if "maximum_count" in about:
        return ParameterField(**words, kind="texts")
    if "maximum_length" in about:
        return ParameterField(**words, kind="text", maximum_length=about["maximum_length"])
    return ParameterField(**words)


def expert_groups() -> list[tuple[Words, list[ParameterField]]]:
    """Return the expert fields by group, in the order in which the drawer shows them."""
    return [(title, [parameter_field(name) for name in names]) for title, names in GROUPS]

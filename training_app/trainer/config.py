"""The settings of a training: names, bounds and defaults, in one place.

The form, the API and the trainer all read them here. Nothing of torch or Django is
imported, and nothing is looked up: what a base model or a dataset contributes comes in
as plain values.
"""

from __future__ import annotations

import dataclasses
import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models_app.architectures import ARCHITECTURES
from training_app.trainer.presets import (
    CONTROL_PROMPT,
    PRESETS,
    TINY_CONTROL_PROMPT,
    TINY_NATIVE_SIZE,
    Preset,
    find_preset,
)

MAXIMUM_SEED = 2**32 - 1
MAXIMUM_PROMPT = 2000
RESOLUTION_STEP = 8


class ConfigError(ValueError):
    """A setting that cannot be used.

    Attributes:
        field: Name of the setting.
        message: A sentence in English.
        code: ``unknown_field``, ``wrong_type``, ``not_finite``, ``out_of_range``,
            ``not_a_choice``, ``not_a_multiple``, ``too_long``, ``too_many`` or
            ``not_trainable``.
        params: The values of the sentence, for a translation of it.
    """

    def __init__(self, field: str, message: str, code: str, **params: Any) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message
        self.code = code
        self.params = params


def _number(minimum: float, maximum: float) -> Any:
    return dataclasses.field(metadata={"minimum": minimum, "maximum": maximum})


def _choice(*choices: str) -> Any:
    return dataclasses.field(metadata={"choices": choices})


def _text(maximum_length: int) -> Any:
    return dataclasses.field(metadata={"maximum_length": maximum_length})


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything that decides a training beside its pictures and its base model.

    The bounds of every field stand in its metadata: ``minimum`` and ``maximum``,
    ``choices`` or ``maximum_length``.

    Attributes:
        preset: What is taught: a ``character``, a ``style`` or an ``object``. It decides
            the defaults of the other fields.
        max_train_steps: Optimizer steps of the whole run.
        learning_rate: Peak learning rate of AdamW.
        rank: Rank of the adapters: how much they can hold.
        alpha: Strength of the adapters; they act with alpha / rank.
        train_batch_size: Pictures per micro-batch.
        gradient_accumulation_steps: Micro-batches per optimizer step.
        resolution: Side in pixels of a square with the area that pictures are trained at.
        seed: Seed of everything random in the run.
        trigger_word: The word that calls what is taught; put before captions without it.
        sample_prompts: Prompts of the sample pictures; empty takes them from the captions.
        control_prompt: One more sample prompt, without the trigger word; empty leaves it out.
        sample_every_steps: Steps between sample pictures; 0 makes them at the end only.
        sample_inference_steps: Denoising steps of a sample picture.
        sample_guidance_scale: Guidance of a sample picture.
        lr_scheduler: Shape of the learning rate after the warmup.
        lr_warmup_steps: Steps in which the learning rate rises to its peak.
        weight_decay: AdamW's weight decay.
        max_grad_norm: Norm that gradients are clipped to; 0 does not clip.
        mixed_precision: ``no`` computes in fp32, ``bf16`` in bfloat16; ``auto`` takes bf16
            on a GPU that has it and fp32 elsewhere. Adapters are always fp32.
        flip: Whether every picture is also shown mirrored.
        caption_dropout: Share of captions replaced by the empty prompt, which keeps
            guidance working.
        snr_gamma: Gamma of the min-SNR loss weights; 0 weighs all timesteps alike.
        targets: Layers that get adapters: attention alone, with the feed-forward layers, or
            all of a block, its convolutions too.
    """

    preset: str = _choice(*PRESETS)
    max_train_steps: int = _number(1, 100_000)
    learning_rate: float = _number(1e-7, 0.1)
    rank: int = _number(1, 256)
    alpha: float = _number(0.01, 1024)
    train_batch_size: int = _number(1, 64)
    gradient_accumulation_steps: int = _number(1, 64)
    resolution: int = _number(64, 2048)
    seed: int = _number(0, MAXIMUM_SEED)
    trigger_word: str = _text(100)
    sample_prompts: tuple[str, ...] = dataclasses.field(
        metadata={"maximum_length": MAXIMUM_PROMPT, "maximum_count": 8}
    )
    control_prompt: str = _text(MAXIMUM_PROMPT)
    sample_every_steps: int = _number(0, 100_000)
    sample_inference_steps: int = _number(1, 100)
    sample_guidance_scale: float = _number(1, 30)
    lr_scheduler: str = _choice("constant", "linear", "cosine")
    lr_warmup_steps: int = _number(0, 100_000)
    weight_decay: float = _number(0, 1)
    max_grad_norm: float = _number(0, 100)
    mixed_precision: str = _choice("auto", "no", "bf16")
    flip: bool
    caption_dropout: float = _number(0, 1)
    snr_gamma: float = _number(0, 20)
    targets: str = _choice("attention", "attention+feed_forward", "all")

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ConfigError: For the first field that cannot be used.
        """
        for field in dataclasses.fields(self):
            value = _CHECKS[str(field.type)](field, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        if self.resolution % RESOLUTION_STEP:
            raise ConfigError(
                "resolution",
                f"must be a multiple of {RESOLUTION_STEP}",
                "not_a_multiple",
                multiple=RESOLUTION_STEP,
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """Makes a configuration from a complete set of values.

        Raises:
            ConfigError: If a field is unknown, missing or cannot be used.
        """
        _refuse_unknown(values)
        for name in FIELDS:
            if name not in values:
                raise ConfigError(name, "is missing", "wrong_type", wanted=FIELDS[name].type)
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """The configuration as values that JSON can hold."""
        values = dataclasses.asdict(self)
        return values | {"sample_prompts": list(self.sample_prompts)}

    @property
    def effective_batch_size(self) -> int:
        """Pictures per optimizer step."""
        return self.train_batch_size * self.gradient_accumulation_steps

    @property
    def effective_learning_rate(self) -> float:
        """Learning rate times the strength of the adapters: what recipes compare by."""
        return self.learning_rate * self.alpha / self.rank

    def passes_per_image(self, num_images: int) -> float:
        """How often each of ``num_images`` pictures is seen."""
        return self.max_train_steps * self.effective_batch_size / max(1, num_images)


FIELDS: dict[str, dataclasses.Field[Any]] = {
    field.name: field for field in dataclasses.fields(TrainingConfig)
}


def _refuse_unknown(values: Mapping[str, Any]) -> None:
    for name in values:
        if name not in FIELDS:
            raise ConfigError(str(name), "is not a setting of a training", "unknown_field")


def _wrong_type(name: str, wanted: str) -> ConfigError:
    return ConfigError(name, f"must be {wanted}", "wrong_type", wanted=wanted)


def _check_number(field: dataclasses.Field[Any], value: Any) -> float:
    wanted = "a whole number" if field.type == "int" else "a number"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(field.name, wanted)
    low, high = field.metadata["minimum"], field.metadata["maximum"]
    # An integer too large for a float is out of range, not an overflow.
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(field.name, "must be a finite number", "not_finite")
    if not low <= value <= high:
        sentence = f"must be between {low:g} and {high:g}"
        raise ConfigError(field.name, sentence, "out_of_range", minimum=low, maximum=high)
    if field.type == "int":
        if value != int(value):
            raise _wrong_type(field.name, wanted)
        return int(value)
    return float(value)


def _check_text(field: dataclasses.Field[Any], value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong_type(field.name, "text")
    if "choices" in field.metadata:
        choices = field.metadata["choices"]
        if value not in choices:
            sentence = f"must be one of {', '.join(choices)}"
            raise ConfigError(field.name, sentence, "not_a_choice", choices=list(choices))
        return value
    text = unicodedata.normalize("NFC", " ".join(value.split()))
    limit = field.metadata["maximum_length"]
    if len(text) > limit:
        sentence = f"must not be longer than {limit} characters"
        raise ConfigError(field.name, sentence, "too_long", maximum=limit)
    return text


def _check_texts(field: dataclasses.Field[Any], value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise _wrong_type(field.name, "a list of texts")
    limit = field.metadata["maximum_count"]
    if len(value) > limit:
        raise ConfigError(field.name, f"must not be more than {limit}", "too_many", maximum=limit)
    texts = (_check_text(field, entry) for entry in value)
    return tuple(text for text in texts if text)


def _check_flag(field: dataclasses.Field[Any], value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong_type(field.name, "true or false")
    return value


_CHECKS = {
    "int": _check_number,
    "float": _check_number,
    "str": _check_text,
    "bool": _check_flag,
    "tuple[str, ...]": _check_texts,
}


def native_size_of(architecture: str, base_defaults: Mapping[str, Any]) -> int:
    """Side in pixels that a base model was made for.

    Args:
        architecture: Name of its family.
        base_defaults: Its default settings; ``native_size`` or ``width`` say the size,
            without them it is the family's.
    """
    size = base_defaults.get("native_size") or base_defaults.get("width")
    return int(size) if size else ARCHITECTURES[architecture].native_size


def resolve_config(
    asked: Mapping[str, Any],
    *,
    architecture: str,
    base_defaults: Mapping[str, Any] | None = None,
    num_images: int,
) -> TrainingConfig:
    """Completes what somebody asked for to a whole configuration.

    A field that was not asked for comes from the base model, then from the preset for
    this kind of base. ``None`` means not asked for.

    Args:
        asked: Settings by name.
        architecture: Name of the base model's family.
        base_defaults: The base model's default settings. ``training`` in it holds
            settings by name; ``native_size`` or ``width`` its size in pixels;
            ``num_inference_steps`` and ``guidance_scale`` how it samples well.
        num_images: How many pictures the dataset holds.

    Raises:
        ConfigError: If a field is unknown or cannot be used, or the family cannot be
            trained (field ``architecture``).
    """
    if architecture not in ARCHITECTURES or not ARCHITECTURES[architecture].trainable:
        raise ConfigError("architecture", "cannot be trained", "not_trainable")
    base = base_defaults or {}
    given = {name: value for name, value in asked.items() if value is not None}
    settings = {**(base.get("training") or {}), **given}
    _refuse_unknown(settings)

    preset_name = _check_text(FIELDS["preset"], settings.get("preset", PRESETS[0]))
    native_size = native_size_of(architecture, base)
    preset = find_preset(preset_name, architecture, native_size)
    values = _defaults_of(preset, native_size, base) | settings | {"preset": preset_name}
    return TrainingConfig(**_complete(values, preset, num_images))


def _defaults_of(preset: Preset, native_size: int, base: Mapping[str, Any]) -> dict[str, Any]:
    is_tiny = native_size <= TINY_NATIVE_SIZE
    return {
        "learning_rate": preset.learning_rate,
        "rank": preset.rank,
        "train_batch_size": preset.train_batch_size,
        "gradient_accumulation_steps": 1,
        "resolution": native_size,
        "seed": 0,
        "trigger_word": "",
        "sample_prompts": (),
        "control_prompt": TINY_CONTROL_PROMPT if is_tiny else CONTROL_PROMPT,
        "sample_inference_steps": base.get("num_inference_steps") or 20,
        "sample_guidance_scale": base.get("guidance_scale") or 7.5,
        "lr_scheduler": preset.lr_scheduler,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "mixed_precision": "auto",
        "flip": preset.flip,
        "caption_dropout": preset.caption_dropout,
        "snr_gamma": preset.snr_gamma,
        "targets": preset.targets,
    }


def _complete(values: dict[str, Any], preset: Preset, num_images: int) -> dict[str, Any]:
    """Adds the fields whose default follows from other fields, once those are checked."""
    checked = {
        name: _check_number(FIELDS[name], values[name])
        for name in ("rank", "train_batch_size", "gradient_accumulation_steps")
    }
    passes = max(1, num_images) * preset.passes_per_image
    passes = min(max(passes, preset.minimum_passes), preset.maximum_passes)
    batch = checked["train_batch_size"] * checked["gradient_accumulation_steps"]
    values.setdefault("max_train_steps", math.ceil(passes / batch))
    steps = _check_number(FIELDS["max_train_steps"], values["max_train_steps"])
    values.setdefault("alpha", checked["rank"])
    values.setdefault("lr_warmup_steps", round(steps * 0.05))
    values.setdefault("sample_every_steps", math.ceil(steps / 4))
    return values

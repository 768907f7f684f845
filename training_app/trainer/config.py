"""The settings of a training: names, bounds and defaults, in one place.

The form, the API and the trainer all read them here. Nothing of torch or Django is
imported, and nothing is looked up: what a base model or a dataset contributes comes in
as plain values.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models_app.architectures import ARCHITECTURES
from training_app.trainer.fields import (
    CHECKS,
    ConfigError,
    check_number,
    check_text,
    choice,
    number,
    out_of_range,
    refuse_unknown,
    require_package,
    text,
)
from training_app.trainer.presets import (
    COMMON,
    CONTROL_PROMPT,
    METHODS,
    PRESETS,
    TINY_CONTROL_PROMPT,
    TINY_NATIVE_SIZE,
    TUNES,
    Preset,
    find_preset,
)
from training_app.trainer.rhythm import sample_rhythm

MAXIMUM_SEED = 2**32 - 1
MAXIMUM_PROMPT = 2000
RESOLUTION_STEP = 8
#: From so many pictures on one is held out, and from so many two.
VALIDATION_FROM = (15, 30)
#: Prodigy's learning rate is a factor of the one it finds; all others stay below this.
MAXIMUM_LEARNING_RATE = 0.1
#: Settings that trainings saved earlier do not have, with what those do.
ADDED_LATER: dict[str, Any] = {"torch_compile": "off"}


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything that decides a training beside its pictures and its base model.

    The bounds of every field stand in its metadata: ``minimum`` and ``maximum``,
    ``choices`` or ``maximum_length``.

    Attributes:
        preset: What is taught: a ``character``, a ``style`` or an ``object``. It decides
            the defaults of the other fields.
        max_train_steps: Optimizer steps of the whole run.
        learning_rate: Peak learning rate; with Prodigy a factor of the one it finds itself.
        tune: What learns: ``adapters`` beside the frozen layers, or the whole ``unet``.
        rank: Rank of the adapters: how much they can hold.
        alpha: Strength of the adapters; they act with alpha / rank.
        dropout: Share of the adapters' inputs that is left out at random in training.
        use_dora: Whether adapters learn the size of each layer's weights apart from their
            direction (DoRA).
        train_text_encoder: Whether the text encoders learn too, by adapters or as a whole
            like the denoiser. Their prompts are then encoded in every step.
        text_encoder_learning_rate: Peak learning rate of the text encoders; with Prodigy its
            ratio to the other one counts.
        instance_prompt: DreamBooth: the prompt of pictures that have no caption.
        class_prompt: DreamBooth: the prompt of what the subject is one of.
        prior_loss_weight: DreamBooth: how much pictures of the class, painted by the base
            model, count beside the own ones; 0 does without them.
        num_class_images: How many pictures of the class there are.
        use_ema: Whether samples and the result show the weights' moving average.
        ema_decay: Share of the average that each step keeps.
        gradient_checkpointing: Whether activations are computed twice to save memory;
            ``auto`` only where the training would not fit the device otherwise.
        torch_compile: Whether the denoiser is compiled before the first step, which takes minutes
            and makes every step faster; ``auto`` on a GPU, if the run is long enough.
        train_batch_size: Pictures per micro-batch, all devices together.
        num_devices: Devices that share every micro-batch equally.
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
        weight_decay: Decoupled weight decay of the optimizer.
        max_grad_norm: Norm that gradients are clipped to; 0 does not clip.
        mixed_precision: ``no`` computes in fp32, ``bf16`` in bfloat16, ``fp16`` in float16
            with a gradient scaler; ``auto`` takes bf16 on a GPU that has it and fp32
            elsewhere. Adapters are always fp32.
        flip: Whether every picture is also shown mirrored.
        caption_dropout: Share of captions replaced by the empty prompt, which keeps
            guidance working.
        snr_gamma: Gamma of the min-SNR loss weights; 0 weighs all timesteps alike.
        targets: Layers that get adapters: attention alone, with the feed-forward layers, or
            all of a block, its convolutions too.
        optimizer: ``adamw``; ``adamw8bit``, which keeps its state in 8 bits; ``prodigy``,
            which finds the learning rate; ``adafactor``, which keeps hardly any state.
        loss: ``l2`` is the squared error, ``huber`` is kinder to outliers.
        huber_delta: Error from which on ``huber`` grows in a line.
        noise_offset: Strength of noise that is constant over a picture; it lets the model
            learn very bright and very dark ones.
        caption_prefix: Words before every caption, after the trigger word.
        shuffle_captions: Whether the comma-separated tags of captions change their order.
        keep_tokens: How many tags after the trigger word keep their place.
        caption_variants: How many orders of the tags each caption is learned in.
        crop: Which part of a picture that does not fit its size is shown: the ``center``, or
            ``random`` ones.
        crop_variants: How many random parts of each picture are learned.
        validation_images: Pictures that are not learned from but tell how well the others
            carry over; 0 holds none out.
        checkpoint_every_steps: Steps between checkpoints; 0 makes ten at most, with samples.
        choose: The result: the weights of the ``last`` step, or of the checkpoint with the
            ``best``, that is lowest, held-out loss.
    """

    preset: str = choice(*PRESETS)
    max_train_steps: int = number(1, 100_000)
    learning_rate: float = number(1e-7, 1)
    tune: str = choice("adapters", "unet")
    rank: int = number(1, 256)
    alpha: float = number(0.01, 1024)
    dropout: float = number(0, 0.9)
    use_dora: bool
    train_text_encoder: bool
    text_encoder_learning_rate: float = number(1e-8, 1)
    instance_prompt: str = text(MAXIMUM_PROMPT)
    class_prompt: str = text(MAXIMUM_PROMPT)
    prior_loss_weight: float = number(0, 10)
    num_class_images: int = number(1, 1000)
    use_ema: bool
    ema_decay: float = number(0, 0.99999)
    gradient_checkpointing: str = choice("auto", "on", "off")
    torch_compile: str = choice("auto", "on", "off")
    train_batch_size: int = number(1, 64)
    num_devices: int = number(1, 16)
    gradient_accumulation_steps: int = number(1, 64)
    resolution: int = number(64, 2048)
    seed: int = number(0, MAXIMUM_SEED)
    trigger_word: str = text(100)
    sample_prompts: tuple[str, ...] = dataclasses.field(
        metadata={"maximum_length": MAXIMUM_PROMPT, "maximum_count": 8}
    )
    control_prompt: str = text(MAXIMUM_PROMPT)
    sample_every_steps: int = number(0, 100_000)
    sample_inference_steps: int = number(1, 100)
    sample_guidance_scale: float = number(1, 30)
    lr_scheduler: str = choice("constant", "linear", "cosine")
    lr_warmup_steps: int = number(0, 100_000)
    weight_decay: float = number(0, 1)
    max_grad_norm: float = number(0, 100)
    mixed_precision: str = choice("auto", "no", "bf16", "fp16")
    flip: bool
    caption_dropout: float = number(0, 1)
    snr_gamma: float = number(0, 20)
    targets: str = choice("attention", "attention+feed_forward", "all")
    optimizer: str = choice("adamw", "adamw8bit", "prodigy", "adafactor")
    loss: str = choice("l2", "huber")
    huber_delta: float = number(1e-4, 10)
    noise_offset: float = number(0, 1)
    caption_prefix: str = text(500)
    shuffle_captions: bool
    keep_tokens: int = number(0, 100)
    caption_variants: int = number(1, 32)
    crop: str = choice("center", "random")
    crop_variants: int = number(1, 16)
    validation_images: int = number(0, 100)
    checkpoint_every_steps: int = number(0, 100_000)
    choose: str = choice("last", "best")

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ConfigError: For the first field that cannot be used.
        """
        for field in dataclasses.fields(self):
            value = CHECKS[str(field.type)](field, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        if self.resolution % RESOLUTION_STEP:
            raise ConfigError(
                "resolution",
                f"must be a multiple of {RESOLUTION_STEP}",
                "not_a_multiple",
                multiple=RESOLUTION_STEP,
            )
        if self.train_batch_size % self.num_devices:
            raise ConfigError(
                "num_devices",
                f"cannot share {self.train_batch_size} pictures equally",
                "unequal_shares",
                batch=self.train_batch_size,
                devices=self.num_devices,
            )
        for name in ("learning_rate", "text_encoder_learning_rate"):
            if self.optimizer != "prodigy" and getattr(self, name) > MAXIMUM_LEARNING_RATE:
                low = FIELDS[name].metadata["minimum"]
                raise out_of_range(name, low, MAXIMUM_LEARNING_RATE)
        if self.choose == "best" and self.validation_images == 0:
            raise ConfigError("choose", "needs pictures that are held out", "needs_validation")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """Makes a configuration from a complete set of values, as trainings keep it.

        Raises:
            ConfigError: If a field is unknown, missing or cannot be used.
        """
        refuse_unknown(values, FIELDS)
        values = ADDED_LATER | dict(values)
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
        """Learning rate times the strength of adapters: what recipes compare by."""
        strength = self.alpha / self.rank if self.tune == "adapters" else 1
        return self.learning_rate * strength

    @property
    def has_prior(self) -> bool:
        """Whether pictures of the class are trained on beside the own ones."""
        return self.prior_loss_weight > 0

    def passes_per_image(self, total_repeats: int, repeats: int = 1) -> float:
        """How often a picture is seen, by its repeats and those of all pictures together."""
        passes = self.max_train_steps * self.effective_batch_size
        return repeats * passes / max(1, total_repeats)


FIELDS: dict[str, dataclasses.Field[Any]] = {
    field.name: field for field in dataclasses.fields(TrainingConfig)
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
    method: str,
    base_defaults: Mapping[str, Any] | None = None,
    num_images: int,
) -> TrainingConfig:
    """Completes what somebody asked for to a whole configuration.

    A field that was not asked for comes from the base model, then from the preset for
    this kind of base and this method. ``None`` means not asked for.

    Args:
        asked: Settings by name.
        architecture: Name of the base model's family.
        method: One of :data:`METHODS`.
        base_defaults: The base model's default settings. ``training`` in it holds
            settings by name for each method; ``native_size`` or ``width`` its size in
            pixels; ``num_inference_steps`` and ``guidance_scale`` how it samples well.
        num_images: How many pictures the dataset holds.

    Raises:
        ConfigError: If a field is unknown or cannot be used or contradicts the method
            (field ``method`` if there is no such), or the family cannot be trained
            (field ``architecture``).
    """
    if architecture not in ARCHITECTURES or not ARCHITECTURES[architecture].trainable:
        raise ConfigError("architecture", "cannot be trained", "not_trainable")
    _require_method(method)
    base = base_defaults or {}
    given = {name: value for name, value in asked.items() if value is not None}
    settings = {**(base.get("training") or {}).get(method, {}), **given}
    refuse_unknown(settings, FIELDS)
    if settings.get("optimizer") == "adamw8bit":
        require_package("optimizer", "bitsandbytes")

    preset_name = check_text(FIELDS["preset"], settings.get("preset", PRESETS[0]))
    tune = check_text(FIELDS["tune"], settings.get("tune", TUNES[method][0]))
    native_size = native_size_of(architecture, base)
    preset = find_preset(preset_name, architecture, method, tune, native_size)
    values = _defaults_of(preset, native_size, base) | settings
    values |= {"preset": preset_name, "tune": tune}
    if values["optimizer"] == "prodigy":
        # What was tuned for an optimizer that is told its rate would not fit this one.
        rates = {"learning_rate": 1.0, "lr_scheduler": "constant"} | given
        values |= {"text_encoder_learning_rate": rates["learning_rate"]} | rates
    _complete_prior(values, method)
    config = TrainingConfig(**_complete(values, preset, num_images))
    check_method(config, method)
    return config


def check_method(config: TrainingConfig, method: str) -> None:
    """Refuses settings that contradict the method.

    Raises:
        ConfigError: For the first of them, or if there is no such method.
    """
    _require_method(method)
    if config.tune not in TUNES[method]:
        sentence = f"must be {' or '.join(TUNES[method])} for this method"
        raise ConfigError("tune", sentence, "not_a_choice", choices=list(TUNES[method]))
    if method == "dreambooth":
        if config.has_prior and not config.class_prompt:
            raise ConfigError("class_prompt", "is needed for pictures of the class", "required")
        return
    for name in ("instance_prompt", "class_prompt", "prior_loss_weight"):
        if getattr(config, name):
            raise ConfigError(name, "belongs to DreamBooth", "not_for_method", method=method)


def _require_method(method: str) -> None:
    if method not in METHODS:
        sentence = f"must be one of {', '.join(METHODS)}"
        raise ConfigError("method", sentence, "not_a_choice", choices=list(METHODS))


def _defaults_of(preset: Preset, native_size: int, base: Mapping[str, Any]) -> dict[str, Any]:
    is_tiny = native_size <= TINY_NATIVE_SIZE
    given = {name: value for name, value in vars(preset).items() if name in FIELDS}
    return (
        COMMON
        | given
        | {
            "resolution": native_size,
            "control_prompt": TINY_CONTROL_PROMPT if is_tiny else CONTROL_PROMPT,
            "sample_inference_steps": base.get("num_inference_steps") or 20,
            "sample_guidance_scale": base.get("guidance_scale") or 7.5,
        }
    )


def _complete_prior(values: dict[str, Any], method: str) -> None:
    """DreamBooth with a class prompt preserves the class; nothing else does unless asked."""
    class_prompt = check_text(FIELDS["class_prompt"], values["class_prompt"])
    values.setdefault("prior_loss_weight", float(method == "dreambooth" and class_prompt != ""))


def _complete(values: dict[str, Any], preset: Preset, num_images: int) -> dict[str, Any]:
    """Adds the fields whose default follows from other fields, once those are checked."""
    checked = {
        name: check_number(FIELDS[name], values[name])
        for name in ("rank", "train_batch_size", "gradient_accumulation_steps")
    }
    passes = max(1, num_images) * preset.passes_per_image
    passes = min(max(passes, preset.minimum_passes), preset.maximum_passes)
    batch = checked["train_batch_size"] * checked["gradient_accumulation_steps"]
    values.setdefault("max_train_steps", math.ceil(passes / batch))
    steps = int(check_number(FIELDS["max_train_steps"], values["max_train_steps"]))
    values.setdefault("alpha", checked["rank"])
    values.setdefault("lr_warmup_steps", round(steps * 0.05))
    every = check_number(FIELDS["checkpoint_every_steps"], values["checkpoint_every_steps"])
    values.setdefault("sample_every_steps", sample_rhythm(steps, int(every), preset.choices))
    _complete_validation(values, num_images)
    return values


def _complete_validation(values: dict[str, Any], num_images: int) -> None:
    """Holds pictures out where there are enough, and never the last one."""
    by_default = sum(num_images >= enough for enough in VALIDATION_FROM)
    if values["choose"] == "best" and num_images > 1:
        by_default = max(1, by_default)
    held_out = check_number(
        FIELDS["validation_images"], values.setdefault("validation_images", by_default)
    )
    if held_out > max(0, num_images - 1) and num_images > 0:
        raise out_of_range("validation_images", 0, num_images - 1)

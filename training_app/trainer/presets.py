"""What a training looks like when nobody touched an expert field, by method and base.

Presets are defined in image passes, not in steps or epochs, so that ten pictures and
fifty train equally well. This module only holds numbers; ``config`` turns them into a
configuration.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from training_app.trainer.rhythm import CHOICES

#: Up to this native size in pixels a base is a tiny one, trained on a CPU in minutes.
TINY_NATIVE_SIZE = 128

PRESETS = ("character", "style", "object")
METHODS = ("lora", "dreambooth", "full")
#: What may learn by method; the first unless asked otherwise.
TUNES = {"lora": ("adapters",), "dreambooth": ("adapters", "unet"), "full": ("unet",)}


@dataclass(frozen=True)
class Preset:
    """Defaults of one preset on one kind of base.

    Attributes:
        learning_rate: Peak learning rate of what learns.
        rank: Rank of the adapters; alpha is the same unless given.
        passes_per_image: How often each picture is seen.
        minimum_passes: Image passes in all, however few pictures there are.
        maximum_passes: Image passes in all, however many pictures there are.
        train_batch_size: Pictures per micro-batch.
        flip: Whether pictures are also shown mirrored.
        caption_dropout: Share of captions replaced by the empty prompt.
        snr_gamma: Min-SNR gamma; 0 weighs all timesteps alike.
        lr_scheduler: Shape of the learning rate.
        targets: Which layers get adapters.
        text_encoder_learning_rate: Of the text encoders, if they learn.
        num_class_images: Pictures of the class, if it is preserved.
        use_ema: Whether the result is the weights' moving average.
        ema_decay: Share of the average that each step keeps.
        choices: How many times samples are made, each with a checkpoint to choose.
    """

    learning_rate: float
    rank: int
    passes_per_image: int
    minimum_passes: int
    maximum_passes: int
    train_batch_size: int = 4
    flip: bool = False
    caption_dropout: float = 0.05
    snr_gamma: float = 5.0
    lr_scheduler: str = "cosine"
    targets: str = "attention"
    text_encoder_learning_rate: float = 5e-5
    num_class_images: int = 100
    use_ema: bool = False
    ema_decay: float = 0.999
    choices: int = CHOICES


_ADAPTERS = {
    "character": Preset(2e-4, 16, 110, 1500, 4000),
    "style": Preset(1e-4, 32, 70, 2000, 6000, flip=True),
    "object": Preset(2e-4, 16, 90, 1200, 3000),
}
_DREAMBOOTH = {
    "character": Preset(5e-6, 16, 100, 1200, 3000, text_encoder_learning_rate=2e-6),
    "style": Preset(5e-6, 16, 70, 1200, 4000, flip=True, text_encoder_learning_rate=2e-6),
    "object": Preset(5e-6, 16, 80, 1000, 2500, text_encoder_learning_rate=2e-6),
}
_FULL = {
    "character": Preset(3e-6, 16, 80, 2000, 40_000, text_encoder_learning_rate=1e-6, use_ema=True),
    "style": Preset(
        3e-6, 16, 60, 2000, 40_000, flip=True, text_encoder_learning_rate=1e-6, use_ema=True
    ),
    "object": Preset(3e-6, 16, 70, 2000, 40_000, text_encoder_learning_rate=1e-6, use_ema=True),
}


def _with(table: dict[str, Preset], **changes: Any) -> dict[str, Preset]:
    return {name: replace(preset, **changes) for name, preset in table.items()}


_TINY_ADAPTERS = {
    "character": Preset(2e-3, 16, 250, 3000, 6000, targets="attention+feed_forward"),
    "style": Preset(1.5e-3, 16, 200, 3000, 6000, flip=True, targets="attention+feed_forward"),
    "object": Preset(2e-3, 16, 220, 3000, 6000, targets="attention+feed_forward"),
}
# Pictures of the class double a step.
_TINY_DREAMBOOTH = _with(
    _TINY_ADAPTERS, passes_per_image=150, minimum_passes=2000, maximum_passes=4000
)
_TINY_WHOLE = {
    "character": Preset(2e-4, 16, 180, 2400, 4800, text_encoder_learning_rate=2e-5),
    "style": Preset(1.5e-4, 16, 150, 2400, 4800, flip=True, text_encoder_learning_rate=2e-5),
    "object": Preset(2e-4, 16, 160, 2400, 4800, text_encoder_learning_rate=2e-5),
}
_TINY_WHOLE_DREAMBOOTH = _with(
    _TINY_WHOLE, passes_per_image=100, minimum_passes=1200, maximum_passes=2400
)

#: By architecture, then by method and by what learns.
_SD = {
    ("lora", "adapters"): _ADAPTERS,
    ("dreambooth", "adapters"): _ADAPTERS,
    ("dreambooth", "unet"): _DREAMBOOTH,
    ("full", "unet"): _FULL,
}
_SDXL = {
    ("lora", "adapters"): _with(_ADAPTERS, learning_rate=1e-4, text_encoder_learning_rate=1e-5),
    ("dreambooth", "unet"): _with(_DREAMBOOTH, learning_rate=1e-6, text_encoder_learning_rate=5e-7),
    ("full", "unet"): _with(_FULL, learning_rate=4e-7, text_encoder_learning_rate=2e-7),
}
_SDXL["dreambooth", "adapters"] = _SDXL["lora", "adapters"]
# Ten times samples would be a good part of a run of two minutes.
_TINY = {
    kind: _with(table, choices=5)
    for kind, table in {
        ("lora", "adapters"): _TINY_ADAPTERS,
        ("dreambooth", "adapters"): _with(_TINY_DREAMBOOTH, num_class_images=32),
        ("dreambooth", "unet"): _with(_TINY_WHOLE_DREAMBOOTH, num_class_images=32),
        ("full", "unet"): _TINY_WHOLE,
    }.items()
}
_BY_ARCHITECTURE = {"sd1": _SD, "sd2": _SD, "sdxl": _SDXL}

#: Defaults that no preset changes.
COMMON: dict[str, Any] = {
    "dropout": 0.0,
    "use_dora": False,
    "train_text_encoder": False,
    "instance_prompt": "",
    "class_prompt": "",
    "gradient_checkpointing": "auto",
    "torch_compile": "auto",
    "num_devices": 1,
    "gradient_accumulation_steps": 1,
    "seed": 0,
    "trigger_word": "",
    "sample_prompts": (),
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "mixed_precision": "auto",
    "optimizer": "adamw",
    "loss": "l2",
    "huber_delta": 0.1,
    "noise_offset": 0.0,
    "caption_prefix": "",
    "shuffle_captions": False,
    "keep_tokens": 0,
    "caption_variants": 4,
    "crop": "center",
    "crop_variants": 4,
    "checkpoint_every_steps": 0,
    "choose": "last",
}

#: A prompt without the trigger word: its sample shows what the base model loses.
CONTROL_PROMPT = "a photograph of a house beside a lake"
TINY_CONTROL_PROMPT = "a red circle on a blue background"


def find_preset(name: str, architecture: str, method: str, tune: str, native_size: int) -> Preset:
    """Looks up the numbers of a preset.

    Args:
        name: One of :data:`PRESETS`.
        architecture: Name of the base's family.
        method: One of :data:`METHODS`.
        tune: What learns; one that the method does not know gets the method's own.
        native_size: Side in pixels that the base was made for.

    Raises:
        KeyError: If there is no such preset, or none for the architecture.
    """
    tables = _TINY if native_size <= TINY_NATIVE_SIZE else _BY_ARCHITECTURE[architecture]
    return tables[method, tune if tune in TUNES[method] else TUNES[method][0]][name]

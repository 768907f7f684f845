"""What a training looks like when nobody touched an expert field.

Presets are defined in image passes, not in steps or epochs, so that ten pictures and
fifty train equally well. This module only holds numbers; ``config`` turns them into a
configuration.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Up to this native size in pixels a base is a tiny one, trained on a CPU in minutes.
TINY_NATIVE_SIZE = 128

PRESETS = ("character", "style", "object")


@dataclass(frozen=True)
class Preset:
    """Defaults of one preset on one kind of base.

    Attributes:
        learning_rate: Peak learning rate of the adapters.
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


_LARGE = {
    "character": Preset(2e-4, 16, 110, 1500, 4000),
    "style": Preset(1e-4, 32, 70, 2000, 6000, flip=True),
    "object": Preset(2e-4, 16, 90, 1200, 3000),
}

_TINY = {
    "character": Preset(2e-3, 16, 250, 3000, 6000, targets="attention+feed_forward"),
    "style": Preset(1.5e-3, 16, 200, 3000, 6000, flip=True, targets="attention+feed_forward"),
    "object": Preset(2e-3, 16, 220, 3000, 6000, targets="attention+feed_forward"),
}

_BY_ARCHITECTURE = {"sd1": _LARGE, "sd2": _LARGE}

#: A prompt without the trigger word: its sample shows what the base model loses.
CONTROL_PROMPT = "a photograph of a house beside a lake"
TINY_CONTROL_PROMPT = "a red circle on a blue background"


def find_preset(name: str, architecture: str, native_size: int) -> Preset:
    """Looks up the numbers of a preset.

    Raises:
        KeyError: If there is no such preset, or none for the architecture.
    """
    table = _BY_ARCHITECTURE[architecture]
    return (_TINY if native_size <= TINY_NATIVE_SIZE else table)[name]

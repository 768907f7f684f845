"""Pictures and captions of the manifest, and the order in which a run sees them.

Pictures become tensors with Pillow and numpy; captions become the prompts that are
trained on. :class:`ImageSampler` decides which pictures a batch holds. Nothing is
encoded here, see ``cache``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from training_app.trainer.buckets import (
    Bucket,
    buckets_for,
    center_offset,
    choose_bucket,
    cover_size,
)
from training_app.trainer.randomness import derive_seed
from training_app.trainer.request import TrainingImage


@dataclass(frozen=True)
class Example:
    """One picture as it is trained on.

    Attributes:
        image: Its entry in the manifest.
        bucket: The size it is trained at.
        prompt: Caption and trigger word as one prompt.
    """

    image: TrainingImage
    bucket: Bucket
    prompt: str


def training_prompt(caption: str, trigger_word: str) -> str:
    """The prompt of a picture: its caption, with the trigger word put first if it lacks it.

    A picture without a caption is trained on the trigger word alone.
    """
    caption = " ".join(caption.split())
    if not trigger_word:
        return caption
    if not caption:
        return trigger_word
    word = rf"(?<!\w){re.escape(trigger_word)}(?!\w)"
    if re.search(word, caption, re.IGNORECASE):
        return caption
    return f"{trigger_word}, {caption}"


def make_examples(
    images: Sequence[TrainingImage], *, resolution: int, trigger_word: str
) -> list[Example]:
    """Gives every picture of the manifest its bucket and its prompt, in order."""
    buckets = buckets_for(resolution)
    return [
        Example(
            image,
            choose_bucket(image.width, image.height, buckets),
            training_prompt(image.caption, trigger_word),
        )
        for image in images
    ]


def read_pixels(path: Path, bucket: Bucket, *, mirrored: bool) -> torch.Tensor:
    """Reads a picture as the VAE wants it: covering the bucket, its middle cut out.

    Transparency is put on white, as the site does with what it stores.

    Returns:
        Pixels (1, 3, H, W) in -1…1, fp32.

    Raises:
        OSError: If the file cannot be read as a picture.
    """
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
    size = cover_size(image.width, image.height, bucket)
    left, top = center_offset(image.width, image.height, bucket)
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    image = image.crop((left, top, left + bucket.width, top + bucket.height))
    if mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0)
    return pixels.to(torch.float32).div(127.5).sub(1).contiguous()


class ImageSampler:
    """Deals pictures into batches of one bucket each, for ever.

    Every bucket is a deck that is shuffled anew each time it runs out, and batches are
    cut from it without a gap: all are full, and over time every picture is seen equally
    often. The buckets take turns in proportion to their pictures. What comes next
    depends on the seed and on how many batches were dealt before, on nothing else.
    """

    def __init__(self, buckets: Sequence[Bucket], batch_size: int, seed: int) -> None:
        """Shuffles the first decks when they are needed.

        Args:
            buckets: The bucket of every picture, in the order of the manifest.
            batch_size: Pictures per batch.
            seed: Seed of the shuffling.
        """
        self._decks = {
            bucket: [i for i, other in enumerate(buckets) if other == bucket]
            for bucket in sorted(set(buckets))
        }
        self._batch_size = batch_size
        self._seed = seed
        self._total = len(buckets)
        self._dealt = dict.fromkeys(self._decks, 0)
        self._shuffled: dict[tuple[int, int], list[int]] = {}

    @property
    def position(self) -> dict[str, int]:
        """Batches dealt so far, by bucket."""
        return {str(bucket): count for bucket, count in self._dealt.items()}

    def restore(self, position: dict[str, int]) -> None:
        """Goes on where another sampler of the same pictures stood.

        Raises:
            ValueError: If the position names other buckets.
        """
        if set(position) != {str(bucket) for bucket in self._decks}:
            raise ValueError("the position belongs to other pictures")
        self._dealt = {bucket: int(position[str(bucket)]) for bucket in self._decks}

    def deal(self) -> tuple[Bucket, list[int]]:
        """The next batch: its bucket and the places of its pictures in the manifest."""
        turn = sum(self._dealt.values()) + 1
        bucket = max(
            self._decks,
            key=lambda each: len(self._decks[each]) * turn - self._dealt[each] * self._total,
        )
        start = self._dealt[bucket] * self._batch_size
        self._dealt[bucket] += 1
        return bucket, [self._card(bucket, start + i) for i in range(self._batch_size)]

    def _card(self, bucket: Bucket, place: int) -> int:
        deck = self._decks[bucket]
        round_number, card = divmod(place, len(deck))
        order = list(self._decks).index(bucket)
        key = (order, round_number)
        if key not in self._shuffled:
            generator = torch.Generator().manual_seed(derive_seed(self._seed, "deck", *key))
            # A batch reaches back into the round before, never further.
            self._shuffled.pop((order, round_number - 2), None)
            self._shuffled[key] = torch.randperm(len(deck), generator=generator).tolist()
        return deck[self._shuffled[key][card]]

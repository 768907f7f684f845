"""Pictures of the manifest as they are trained on, and the order in which a run sees them.

Pictures become tensors with Pillow and numpy. :class:`ImageSampler` decides which
pictures a batch holds. Nothing is encoded here, see ``cache``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps

from training_app.trainer.buckets import Bucket, choose_bucket, cover_size
from training_app.trainer.captions import training_prompts
from training_app.trainer.config import TrainingConfig
from training_app.trainer.randomness import derive_seed
from training_app.trainer.request import TrainingImage


@dataclass(frozen=True)
class Variant:
    """One way in which a picture is shown.

    Attributes:
        mirrored: Whether it is turned left to right, before it is cropped.
        left: Pixels cut off on the left of the resized picture.
        top: Pixels cut off above.
    """

    mirrored: bool
    left: int
    top: int

    def __str__(self) -> str:
        return f"{'mirrored' if self.mirrored else 'plain'}+{self.left}+{self.top}"


@dataclass(frozen=True)
class Example:
    """One picture as it is trained on.

    Attributes:
        image: Its entry in the manifest.
        bucket: The size it is trained at.
        prompts: Its caption made ready, in all orders of its tags; at least one.
        variants: The ways in which it is shown; at least one.
    """

    image: TrainingImage
    bucket: Bucket
    prompts: tuple[str, ...]
    variants: tuple[Variant, ...]

    @property
    def prompt(self) -> str:
        """The prompt with the tags in the caption's own order."""
        return self.prompts[0]


def make_examples(images: Sequence[TrainingImage], config: TrainingConfig) -> list[Example]:
    """Gives every picture of the manifest its bucket, prompts and variants, in order."""
    examples = []
    for image in images:
        bucket = choose_bucket(image.width, image.height, config.resolution)
        prompts = training_prompts(image.caption, config, image.pixel_sha256)
        examples.append(Example(image, bucket, prompts, make_variants(image, bucket, config)))
    return examples


def make_variants(
    image: TrainingImage, bucket: Bucket, config: TrainingConfig
) -> tuple[Variant, ...]:
    """All crops of a picture, and each of them mirrored, without doubles.

    Random crops depend on the picture alone, so that every run finds them in the cache.
    """
    width, height = cover_size(image.width, image.height, bucket)
    slack = (width - bucket.width, height - bucket.height)
    crops = [(slack[0] // 2, slack[1] // 2)]
    if config.crop == "random":
        generator = torch.Generator().manual_seed(derive_seed(0, "crop", image.pixel_sha256))
        shares = torch.rand((config.crop_variants, 2), generator=generator).tolist()
        crops = [tuple(round(slack[i] * share[i]) for i in (0, 1)) for share in shares]
    found = [Variant(False, left, top) for left, top in crops]
    if config.flip:
        # The mirrored crop shows the same part of the picture.
        found += [Variant(True, slack[0] - left, top) for left, top in crops]
    return tuple(dict.fromkeys(found))


def read_pixels(example: Example, variant: Variant) -> torch.Tensor:
    """Reads a picture as the VAE wants it: covering its bucket, one part of it cut out.

    Transparency is put on white, as the site does with what it stores.

    Returns:
        Pixels (1, 3, H, W) in -1…1, fp32.

    Raises:
        OSError: If the file cannot be read as a picture.
    """
    with Image.open(example.image.path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
    bucket = example.bucket
    size = cover_size(example.image.width, example.image.height, bucket)
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    if variant.mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    left, top = variant.left, variant.top
    image = image.crop((left, top, left + bucket.width, top + bucket.height))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0)
    return pixels.to(torch.float32).div(127.5).sub(1).contiguous()


def choose_held_out(num_images: int, config: TrainingConfig) -> tuple[int, ...]:
    """Places of the pictures that are not learned from, sorted; one picture is always left."""
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "held out"))
    order = torch.randperm(num_images, generator=generator).tolist()
    return tuple(sorted(order[: min(config.validation_images, num_images - 1)]))


class ImageSampler:
    """Deals pictures into batches of one bucket each, for ever.

    Every bucket is a deck that is shuffled anew each time it runs out, and batches are
    cut from it without a gap: all are full, and over time every picture is seen as often
    as its repeats say. The buckets take turns in proportion to their decks. What comes
    next depends on the seed and on what was dealt before, on nothing else.
    """

    def __init__(self, examples: Sequence[Example], members: Sequence[int], seed: int) -> None:
        """Shuffles the first decks when they are needed.

        Args:
            examples: Every picture, in the order of the manifest.
            members: Places of those that are dealt; at least one.
            seed: Seed of the shuffling.
        """
        self._decks: dict[Bucket, list[int]] = {
            bucket: [] for bucket in sorted({examples[member].bucket for member in members})
        }
        for member in members:
            self._decks[examples[member].bucket] += [member] * examples[member].image.repeats
        self._seed = seed
        self._total = sum(map(len, self._decks.values()))
        self._dealt = dict.fromkeys(self._decks, 0)
        self._shuffled: dict[tuple[int, int], list[int]] = {}

    @property
    def buckets(self) -> list[Bucket]:
        """The sizes of what it deals, the largest first."""
        return sorted(self._decks, key=lambda each: each.width * each.height, reverse=True)

    @property
    def position(self) -> dict[str, int]:
        """Pictures dealt so far, by bucket."""
        return {str(bucket): count for bucket, count in self._dealt.items()}

    def restore(self, position: dict[str, int]) -> None:
        """Goes on where another sampler of the same pictures stood.

        Raises:
            ValueError: If the position names other buckets.
        """
        if set(position) != {str(bucket) for bucket in self._decks}:
            raise ValueError("the position belongs to other pictures")
        self._dealt = {bucket: int(position[str(bucket)]) for bucket in self._decks}

    def deal(self, batch_size: int) -> tuple[Bucket, list[int]]:
        """The next batch: its bucket and the places of its pictures in the manifest."""
        total = sum(self._dealt.values()) + batch_size
        bucket = max(
            self._decks,
            key=lambda each: len(self._decks[each]) * total - self._dealt[each] * self._total,
        )
        start = self._dealt[bucket]
        self._dealt[bucket] += batch_size
        return bucket, [self._card(bucket, start + i) for i in range(batch_size)]

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

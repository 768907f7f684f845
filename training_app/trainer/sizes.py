"""What a denoiser is told about sizes: each picture's own, its crop, its bucket.

Only some families know them (SDXL). They are computed once and kept on the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from models_app.architectures import Architecture
from training_app.trainer.buckets import Bucket, center_offset, cover_size
from training_app.trainer.cache import LatentBank
from training_app.trainer.dataset import Example


def make_size_ids(
    family: Architecture, examples: Sequence[Example], latents: LatentBank, device: str
) -> dict[Bucket, torch.Tensor] | None:
    """The numbers (N, V, 6) of all pictures and variants, laid out as the latents are.

    Returns:
        By bucket; ``None`` if the family knows no sizes.
    """
    if family.size_ids is None:
        return None
    found: dict[Bucket, list[list[tuple[int, ...]]]] = {}
    for example in examples:
        image, bucket = example.image, example.bucket
        original, target = (image.width, image.height), (bucket.width, bucket.height)
        left, top = center_offset(image.width, image.height, bucket)
        # Mirrored, what was cut off at the right is cut off at the left.
        right = cover_size(image.width, image.height, bucket)[0] - bucket.width - left
        found.setdefault(bucket, []).append(
            [
                family.size_ids(original, (offset, top), target)
                for offset in (left, right)[: latents.variants]
            ]
        )
    return {
        bucket: torch.tensor(entries, dtype=torch.float32, device=device)
        for bucket, entries in found.items()
    }

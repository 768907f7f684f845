"""What a denoiser is told about sizes: each picture's own, its crop, its bucket.

Only some families know them (SDXL). They are computed once and kept on the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from models_app.architectures import Architecture
from training_app.trainer.buckets import Bucket
from training_app.trainer.dataset import Example


def make_size_ids(
    family: Architecture, examples: Sequence[Example], device: str
) -> dict[Bucket, torch.Tensor] | None:
    """The numbers (V, 6) of all variants of all pictures, in the order of the latents.

    Returns:
        By bucket; ``None`` if the family knows no sizes.
    """
    if family.size_ids is None:
        return None
    found: dict[Bucket, list[tuple[int, ...]]] = {}
    for example in examples:
        image, bucket = example.image, example.bucket
        original, target = (image.width, image.height), (bucket.width, bucket.height)
        found.setdefault(bucket, []).extend(
            family.size_ids(original, (variant.left, variant.top), target)
            for variant in example.variants
        )
    return {
        bucket: torch.tensor(entries, dtype=torch.float32, device=device)
        for bucket, entries in found.items()
    }

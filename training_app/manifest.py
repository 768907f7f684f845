"""The frozen inputs of a training: what is written down when it starts.

Resuming reads only this, so edits and deletions made meanwhile change nothing. It reads rows and
writes none; files are named by key and not opened.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata
from typing import Any, NamedTuple

from django.db.models import Max, Min, Sum

from datasets_app.models import Dataset, DatasetImage
from models_app.models import DiffusionModel
from training_app.models import TrainingJob
from training_app.trainer.config import TrainingConfig

LIBRARIES = (
    "torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "numpy", "pillow",
)  # fmt: skip


def library_versions() -> dict[str, str]:
    """Return the installed versions that decide the numbers; what is not installed is left out."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


class Repeats(NamedTuple):
    """How often the pictures of a training are shown, one against the other.

    Args:
        least: Of the picture that is shown least.
        most: Of the picture that is shown most.
        total: Of all together; at least 1.
    """

    least: int
    most: int
    total: int


def repeats_of(job: TrainingJob | None, dataset: Dataset | None) -> Repeats:
    """Return the repeats of a training's frozen pictures; before the start, of the dataset's."""
    if job is not None and job.manifest:
        told = [int(image.get("repeats", 1)) for image in job.manifest["images"]]
        return Repeats(min(told), max(told), sum(told))
    pictures = DatasetImage.objects.live().filter(dataset=dataset)
    found = pictures.aggregate(least=Min("repeats"), most=Max("repeats"), total=Sum("repeats"))
    return Repeats(*(found[name] or 1 for name in Repeats._fields))


def passes_range(config: TrainingConfig, repeats: Repeats) -> list[float]:
    """Return how often the picture that is shown least is seen, and the one shown most."""
    both = (repeats.least, repeats.most)
    return [round(config.passes_per_image(repeats.total, each), 1) for each in both]


def without_words(images: Iterable[DatasetImage], spare: str) -> list[DatasetImage]:
    """Return the pictures that have no caption, if there are no words that stand in for it."""
    if spare.strip():
        return []
    return [image for image in images if not image.caption.strip()]


def freeze(
    job: TrainingJob, base: DiffusionModel, images: Iterable[DatasetImage], config: dict[str, Any]
) -> dict[str, Any]:
    """Write down everything the training reads.

    Args:
        job: The training that starts.
        base: The model it starts from.
        images: The dataset's living pictures.
        config: The resolved configuration.

    Returns:
        Plain JSON; a picture without a caption carries the instance prompt, or the trigger word.
    """
    spare = str(config.get("instance_prompt") or config.get("trigger_word") or "")
    trigger_word = str(config.get("trigger_word") or "")
    return {
        "images": [
            {
                "id": image.pk,
                "key": image.key,
                "pixel_sha256": image.pixel_sha256,
                "caption": image.caption.strip() or spare,
                "repeats": image.repeats,
                "width": image.width,
                "height": image.height,
            }
            for image in images
        ],
        "dataset": {"id": job.dataset_id, "name": job.dataset_name},
        "base": {
            "id": base.pk,
            "name": base.name,
            "sha256": base.sha256,
            "architecture": base.architecture,
        },
        "config": config,
        "trigger_word": trigger_word,
        "libraries": library_versions(),
    }

"""Pictures of a class, painted by the base model, so that a training does not forget it.

DreamBooth's prior preservation trains on them beside the own pictures: what "a dog" is to
the base, it stays. They are painted once for a base, a class prompt, a size and the
sampling settings, and reused by later runs. A picture's content follows from its number
alone, so runs that want fewer or more share what there is.

Source: Ruiz et al. 2022 (arXiv:2208.12242) section 3.2.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from models_app.architectures import get_architecture
from models_app.device_memory import free_memory
from models_app.loading import load_pipeline
from training_app.trainer.buckets import Bucket
from training_app.trainer.dataset import Example, Variant
from training_app.trainer.files import hash_component, write_file
from training_app.trainer.learner import compute_dtype
from training_app.trainer.randomness import derive_seed
from training_app.trainer.reporting import Reporter, logger
from training_app.trainer.request import TrainingImage, TrainingRequest

#: Pictures are painted so many at a time, always the same ones together: how many share a
#: batch changes their last bits.
CHUNK = 4
#: Raised when what is stored changes its meaning.
_FORMAT = "1"


def count_class_images(examples: Sequence[Example], num_class_images: int) -> dict[Bucket, int]:
    """How many pictures of the class each bucket gets: as large a share as of the own ones."""
    shares = Counter(example.bucket for example in examples)
    return {
        bucket: math.ceil(num_class_images * count / len(examples))
        for bucket, count in sorted(shares.items())
    }


class ClassImages:
    """The pictures of the class that one run wants, those that are there and those that are not."""

    def __init__(self, examples: Sequence[Example], request: TrainingRequest) -> None:
        """Looks what is in the cache.

        Args:
            examples: The run's own pictures, whose buckets the class's have too.
            request: The run; its configuration has a class prompt.

        Raises:
            OSError: If the base model cannot be read.
        """
        self._request = request
        self._counts = count_class_images(examples, request.config.num_class_images)
        family = get_architecture(request.architecture)
        parts = [*family.classes, "scheduler"]
        self._base = [hash_component(request.base_folder / name) for name in parts]
        self._missing = [
            (bucket, chunk)
            for bucket, count in self._counts.items()
            for chunk in range(math.ceil(count / CHUNK))
            if not all(_is_whole(self._path(bucket, number)) for number in _numbers(chunk))
        ]

    @property
    def num_missing(self) -> int:
        """How many pictures have to be painted."""
        return len(self._missing) * CHUNK

    @property
    def num_wanted(self) -> int:
        """How many pictures the run trains on."""
        return sum(self._counts.values())

    def _path(self, bucket: Bucket, number: int) -> Path:
        config = self._request.config
        key = (
            _FORMAT,
            *self._base,
            sha256(config.class_prompt.encode()).hexdigest(),
            bucket,
            CHUNK,
            config.sample_inference_steps,
            config.sample_guidance_scale,
            compute_dtype(config, self._request.device),
        )
        name = sha256("/".join(str(part) for part in key).encode()).hexdigest()
        return self._request.cache_folder / "class_images" / name / f"{number:04d}.png"

    def paint(self, reporter: Reporter, total: int) -> None:
        """Paints what is missing with the base as it is.

        Args:
            reporter: Is told how far it is and asked whether to stop.
            total: What the caching phase counts up to.

        Raises:
            StopRun: If the run shall stop; finished pictures stay.
            LoadingError: If the base model cannot be loaded.
            OSError: If pictures cannot be written.
        """
        request, made = self._request, 0
        if self._missing:
            pipeline = load_pipeline(
                request.base_folder,
                request.architecture,
                dtype=compute_dtype(request.config, request.device),
                device=request.device,
            )
            for bucket, chunk in self._missing:
                reporter.raise_if_stopped()
                pictures = self._paint_chunk(pipeline, bucket, chunk, reporter)
                for number, picture in zip(_numbers(chunk), pictures, strict=True):
                    stream = io.BytesIO()
                    picture.save(stream, "PNG")
                    write_file(self._path(bucket, number), stream.getvalue())
                made += CHUNK
                reporter.phase("caching", made, total)
            del pipeline
            free_memory()
        reused = max(0, self.num_wanted - made)
        reporter.note("class_images_made", count=made, reused=reused)

    def _paint_chunk(
        self, pipeline: Any, bucket: Bucket, chunk: int, reporter: Reporter
    ) -> list[Image.Image]:
        config = self._request.config

        def after_step(*given: Any) -> dict[str, Any]:
            reporter.raise_if_stopped()
            tensors: dict[str, Any] = given[-1]
            return tensors

        seeds = [derive_seed(0, "class image", number) for number in _numbers(chunk)]
        with torch.no_grad():
            pictures: list[Image.Image] = pipeline(
                [config.class_prompt] * CHUNK,
                width=bucket.width,
                height=bucket.height,
                num_inference_steps=config.sample_inference_steps,
                guidance_scale=config.sample_guidance_scale,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                callback_on_step_end=after_step,
            ).images
        return pictures

    def examples(self) -> list[Example]:
        """The pictures as examples to train on, once they are there."""
        return [
            self._example(bucket, number)
            for bucket, count in self._counts.items()
            for number in range(count)
        ]

    def _example(self, bucket: Bucket, number: int) -> Example:
        path, prompt = self._path(bucket, number), self._request.config.class_prompt
        with Image.open(path) as picture:
            pixels = picture.convert("RGB")
        name = sha256(f"{pixels.size}".encode() + pixels.tobytes()).hexdigest()
        image = TrainingImage(
            id=f"class-{bucket}-{number}",
            path=path,
            caption=prompt,
            pixel_sha256=name,
            width=pixels.width,
            height=pixels.height,
        )
        mirrorings = (False, True) if self._request.config.flip else (False,)
        variants = tuple(Variant(mirrored, 0, 0) for mirrored in mirrorings)
        return Example(image, bucket, (prompt,), variants)


def _numbers(chunk: int) -> range:
    return range(chunk * CHUNK, (chunk + 1) * CHUNK)


def _is_whole(path: Path) -> bool:
    try:
        with Image.open(path) as picture:
            picture.load()
    except FileNotFoundError:
        return False
    except (OSError, SyntaxError, ValueError) as exc:
        logger.warning("class picture %s is damaged: %s; it is painted again", path.name, exc)
        return False
    return True

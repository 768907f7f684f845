"""What the trainer is asked to do, as it arrives over the pipe.

It checks that the values are of the right kind; whether the files exist is found out
when they are opened. No torch, no Django.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from training_app.trainer.config import ADDED_LATER, TrainingConfig, check_method

MAXIMUM_REPEATS = 1000


@dataclass(frozen=True)
class TrainingImage:
    """One picture of the frozen manifest.

    Attributes:
        id: Its id on the site.
        path: The stored file, already oriented.
        caption: What its owner wrote; may be empty.
        pixel_sha256: Hash of the decoded pixels, which names it in caches.
        width: In pixels.
        height: In pixels.
        repeats: How often it is shown where another picture is shown once.
    """

    id: str
    path: Path
    caption: str
    pixel_sha256: str
    width: int
    height: int
    repeats: int = 1

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingImage:
        """Reads one entry of the manifest.

        Raises:
            KeyError: If something is missing.
            ValueError: If a size or the repeats cannot be used.
        """
        image = cls(
            id=str(values["id"]),
            path=Path(values["path"]),
            caption=str(values.get("caption") or ""),
            pixel_sha256=str(values["pixel_sha256"]),
            width=int(values["width"]),
            height=int(values["height"]),
            repeats=int(values.get("repeats", 1)),
        )
        if min(image.width, image.height) < 1 or not 1 <= image.repeats <= MAXIMUM_REPEATS:
            raise ValueError(f"picture {image.id} has no size or too many repeats")
        return image


@dataclass(frozen=True)
class TrainingRequest:
    """Everything a training run needs to know.

    Attributes:
        job_id: The job's id, for file names.
        base_folder: The base model in diffusers' layout.
        architecture: Name of its family.
        method: ``lora``, ``dreambooth`` or ``full``.
        config: All settings, resolved.
        images: The frozen manifest; at least one picture.
        output_folder: Where weights, samples and checkpoints go.
        cache_folder: Where latents and prompt embeddings are kept between runs.
        resume_folder: A checkpoint, or a folder of them, to go on from.
        extends: Steps of the finished run that this one makes longer; 0 if it is none.
        device: ``cpu``, ``cuda:0``, ``mps``; of several ranks all devices, joined by ``+``.
        threads: CPU threads of torch in each process; 0 leaves the library's choice.
        memory_bytes: What each process may use of its device; 0 for all of it.
        checkpoint_seconds: Longest time between two checkpoints.
        metadata: Words about the job that go into the weights file.
    """

    job_id: str
    base_folder: Path
    architecture: str
    method: str
    config: TrainingConfig
    images: tuple[TrainingImage, ...]
    output_folder: Path
    cache_folder: Path
    resume_folder: Path | None
    extends: int
    device: str
    threads: int
    memory_bytes: int
    checkpoint_seconds: float
    metadata: Mapping[str, Any]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingRequest:
        """Reads a request.

        Raises:
            ConfigError: If a setting cannot be used.
            KeyError: If something is missing.
            ValueError: If there is no picture.
        """
        config = dict(values["config"])
        if values.get("trigger_word"):
            config["trigger_word"] = values["trigger_word"]
        resolved, method = TrainingConfig.from_dict(config), str(values.get("method", "lora"))
        check_method(resolved, method)
        images = tuple(TrainingImage.from_dict(entry) for entry in values["images"])
        if not images:
            raise ValueError("the manifest names no picture")
        resume = values.get("resume_folder")
        return cls(
            job_id=str(values["job_id"]),
            base_folder=Path(values["base_folder"]),
            architecture=str(values["architecture"]),
            method=method,
            config=resolved,
            images=images,
            output_folder=Path(values["output_folder"]),
            cache_folder=Path(values["cache_folder"]),
            resume_folder=Path(resume) if resume else None,
            extends=int(values.get("extends") or 0),
            device=str(values.get("device") or "cpu"),
            threads=int(values.get("threads") or 0),
            memory_bytes=int(values.get("memory_bytes") or 0),
            checkpoint_seconds=float(values.get("checkpoint_seconds") or 120),
            metadata=dict(values.get("metadata") or {}),
        )

    @property
    def identity(self) -> str:
        """Hash of what decides the weights: only an equal run may go on from a checkpoint."""
        return self._identity(self.config.max_train_steps)

    @property
    def identities(self) -> frozenset[str]:
        """The runs whose checkpoints this one may go on from: itself, and the one it extends."""
        before = self.extends or self.config.max_train_steps
        return frozenset({self.identity, self._identity(before)})

    def _identity(self, max_train_steps: int) -> str:
        config = self.config.as_dict() | {"max_train_steps": max_train_steps}
        for name in _WITHOUT_INFLUENCE:
            config.pop(name)
        for name, before in ADDED_LATER.items():
            # Checkpoints of trainings that were begun without it go on being theirs.
            if config[name] == before:
                config.pop(name)
        images = [[image.pixel_sha256, image.caption, image.repeats] for image in self.images]
        base = [self.architecture, self.metadata.get("base_sha256", "")]
        content = [*base, self.method, config, images]
        return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


#: Settings of samples and checkpoints, which never touch the training, and of how it is shared.
_WITHOUT_INFLUENCE = (
    "num_devices",
    "checkpoint_every_steps",
    "sample_prompts",
    "control_prompt",
    "sample_every_steps",
    "sample_inference_steps",
    "sample_guidance_scale",
)

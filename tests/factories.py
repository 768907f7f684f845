"""Rows and files that many tests need: models, datasets, trainings, workers."""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import math
import shutil
import tempfile
import uuid
from io import BytesIO
from pathlib import Path
from typing import Any

from django.utils import timezone
from PIL import Image

from datasets_app.models import Dataset, DatasetImage
from generation_app.models import GeneratedImage, GenerationJob
from models_app.inspection import sha256_of
from models_app.models import DiffusionModel
from studio_project import storage
from studio_project.models import User, Visibility, Worker
from training_app.models import TrainingJob


def make_base(name: str = "Base", **fields: Any) -> DiffusionModel:
    """Make a ready base model of the site; its files are not there."""
    values: dict[str, Any] = {
        "title": name,
        "type": DiffusionModel.Type.BASE,
        "architecture": "sd1",
        "path": f"models/{uuid.uuid4().hex}",
        "visibility": Visibility.SHARED,
        "sha256": "b" * 64,
        "size_bytes": 1000,
        "default_settings": {"width": 64, "height": 64, "num_inference_steps": 4},
    }
    return DiffusionModel.objects.create(name=name, **{**values, **fields})


def make_base_of(folder: Path, name: str = "Tiny", **fields: Any) -> DiffusionModel:
    """Make a base model out of a diffusers folder, with its files in the storage."""
    prefix, files, digest = f"models/{uuid.uuid4().hex}", [], hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        relative = path.relative_to(folder).as_posix()
        size = storage.save(f"{prefix}/{relative}", path)
        sha256 = sha256_of(path)
        digest.update(sha256.encode())
        files.append({"name": relative, "size": size, "sha256": sha256})
    size_bytes = sum(entry["size"] for entry in files)
    values = {"path": prefix, "files": files, "size_bytes": size_bytes}
    return make_base(name, sha256=digest.hexdigest(), **values, **fields)


def make_full(owner: User, base: DiffusionModel, folder: Path, **fields: Any) -> DiffusionModel:
    """Make a whole network that was trained on a base, with its files in the storage."""
    values = {
        "owner": owner,
        "base_model": base,
        "type": DiffusionModel.Type.FULL,
        "visibility": Visibility.PRIVATE,
    }
    return make_base_of(folder, **{"name": "Trained whole", **values, **fields})


def make_lora(
    owner: User, base: DiffusionModel, name: str = "Fox", **fields: Any
) -> DiffusionModel:
    """Make a ready LoRA; its file is not there."""
    values: dict[str, Any] = {
        "title": name,
        "type": DiffusionModel.Type.LORA,
        "architecture": base.architecture,
        "path": f"models/{uuid.uuid4().hex}.safetensors",
        "sha256": "a" * 64,
        "size_bytes": 100,
    }
    values = {**values, **fields}
    return DiffusionModel.objects.create(name=name, owner=owner, base_model=base, **values)


def lora_bytes(*, rank: int = 2, alpha: float = 4, dora: bool = False) -> bytes:
    """Return a LoRA file of one layer in diffusers' layout, all zeros."""
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    shapes = {f"{layer}.lora.down.weight": [rank, 8], f"{layer}.lora.up.weight": [8, rank]}
    if dora:
        shapes[f"{layer}.lora_magnitude_vector.weight"] = [8]
    words = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": alpha})}
    header: dict[str, Any] = {"__metadata__": words}
    position = 0
    for name, shape in shapes.items():
        size = 4 * math.prod(shape)
        offsets = [position, position + size]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        position += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(position)


def content_of(key: str) -> bytes:
    """Return the bytes of a stored file."""
    with storage.open_key(key) as handle:
        return handle.read()


def picture(color: str, *, size: tuple[int, int] = (64, 64), kind: str = "PNG") -> bytes:
    """Return the bytes of a picture in one colour."""
    out = BytesIO()
    Image.new("RGB", size, color).save(out, kind)
    return out.getvalue()


def make_dataset(
    owner: User, *, captions: tuple[str, ...] = ("a fox", "a fox in the snow"), **fields: Any
) -> Dataset:
    """Make a dataset with one picture for each caption."""
    values = {"name": "Foxes", "num_items": len(captions), **fields}
    dataset = Dataset.objects.create(owner=owner, **values)
    for index, caption in enumerate(captions):
        content = picture(f"rgb({40 + 30 * index}, {200 - 20 * index}, 90)")
        key = storage.new_key("datasets", dataset.pk, suffix=".png")
        thumbnail_key = storage.new_key("datasets", dataset.pk, "thumbs", suffix=".webp")
        storage.save(key, content)
        DatasetImage.objects.create(
            dataset=dataset,
            key=key,
            thumbnail_key=thumbnail_key,
            original_name=f"fox{index}.png",
            caption=caption,
            width=64,
            height=64,
            size_bytes=len(content),
            format="png",
            pixel_sha256=hashlib.sha256(content).hexdigest(),
        )
    return dataset


def make_training(owner: User, **fields: Any) -> TrainingJob:
    """Make a training row without dataset or base."""
    values = {"dataset_name": "Foxes", "base_model_name": "Base", "title": "Foxes v1"}
    return TrainingJob.objects.create(owner=owner, **{**values, **fields})


def make_generation(
    owner: User, model: DiffusionModel | None = None, **fields: Any
) -> GenerationJob:
    """Make a request row with resolved parameters."""
    parameters = {
        "prompt": "a fox",
        "negative_prompt": "",
        "width": 64,
        "height": 64,
        "num_inference_steps": 4,
        "guidance_scale": 5.0,
        "scheduler": "ddim",
        "seed": 7,
        "num_images": 1,
        "loras": [],
        "clip_skip": 0,
        "seeds": [7],
    }
    values = {
        "model_name": "Base",
        "model_title": "Base",
        "parameters": parameters,
        "total_steps": 4,
    }
    return GenerationJob.objects.create(
        owner=owner, model=model, base_model=model, **{**values, **fields}
    )


def make_image(job: GenerationJob, index: int = 0, **fields: Any) -> GeneratedImage:
    """Make a finished picture with its files."""
    key = storage.new_key("jobs", job.pk, suffix=".png")
    size_bytes = storage.save(key, picture("orange"))
    thumbnail_key = storage.new_key("jobs", job.pk, suffix=".webp")
    storage.save(thumbnail_key, picture("orange", kind="WEBP"))
    values = {
        "owner": job.owner,
        "key": key,
        "thumbnail_key": thumbnail_key,
        "seed": 7 + index,
        "width": 64,
        "height": 64,
        "parameters": {"prompt": job.parameters["prompt"]},
        "size_bytes": size_bytes,
    }
    return GeneratedImage.objects.create(job=job, index=index, **{**values, **fields})


def make_worker(name: str = "test-worker", **fields: Any) -> Worker:
    """Make the row of a living CPU worker."""
    values = {
        "host": "here",
        "pid": 1,
        "device": "cpu",
        "queues": ["training", "generation", "default"],
        "code_version": "test",
        "state": Worker.State.IDLE,
        "last_seen_at": timezone.now(),
    }
    return Worker.objects.create(name=name, **{**values, **fields})


@functools.cache
def tiny_folder() -> Path:
    """Return a tiny Stable Diffusion pipeline, made once for the whole run."""
    from tests.tiny import make_tiny_sd

    folder = Path(tempfile.mkdtemp(prefix="studio-tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_tiny_sd(folder)

"""Latents and prompt embeddings, computed once and kept on disk.

After this the VAE and the text encoder are not needed for training, so they are loaded
only if something is missing, and freed. A file is named by everything that decides its
content; one that is damaged is made again. What is encoded is encoded one at a time, so
that a cache that was rebuilt equals the first bit for bit.

Shape legend: V variants of all pictures of a bucket, C, h, w channels and sides of
latents, P prompts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from models_app.architectures import (
    Architecture,
    Conditioning,
    encode_prompts,
    get_architecture,
)
from models_app.device_memory import free_memory
from models_app.loading import load_components
from training_app.trainer.buckets import Bucket
from training_app.trainer.dataset import Example, Variant, read_pixels
from training_app.trainer.files import (
    CorruptFileError,
    hash_component,
    read_checked_tensors,
    write_checked_tensors,
)
from training_app.trainer.reporting import Reporter, logger
from training_app.trainer.request import TrainingRequest

#: Networks that fill the cache compute in this type whatever the training does.
CACHE_DTYPE = torch.float32
#: Raised when what is stored changes its meaning.
_FORMAT = "2"


@dataclass(frozen=True)
class LatentBank:
    """The posterior of every variant of every picture, by bucket, on the training's device.

    Attributes:
        mean: Scaled means (V, C, h, w) by bucket.
        std: Scaled standard deviations, as :attr:`mean`.
        sizes: (V, …) what the denoiser is told of each variant's size and crop, fp32; empty
            if the family's denoiser knows no sizes.
        rows: Where the variants of each picture of the manifest lie in its bucket.
    """

    mean: dict[Bucket, torch.Tensor]
    std: dict[Bucket, torch.Tensor]
    sizes: dict[Bucket, torch.Tensor]
    rows: tuple[range, ...]


@dataclass(frozen=True)
class PromptBank:
    """Conditioning of every prompt of a run, on the training's device.

    Attributes:
        tensors: Named tensors of (P, …).
        places: Where each prompt lies in them; the empty prompt is one of them.
    """

    tensors: dict[str, torch.Tensor]
    places: dict[str, int]

    def pick(self, rows: torch.Tensor) -> Conditioning:
        """The conditioning of a batch of prompts, given by their places."""
        return Conditioning({name: tensor[rows] for name, tensor in self.tensors.items()})

    def of(self, prompt: str) -> Conditioning:
        """The conditioning of one prompt, as a batch of one."""
        place = self.places[prompt]
        return Conditioning({n: tensor[place : place + 1] for n, tensor in self.tensors.items()})


def _read(path: Path) -> dict[str, torch.Tensor] | None:
    try:
        return read_checked_tensors(path)
    except FileNotFoundError:
        return None
    except CorruptFileError as exc:
        logger.warning("cache: %s; it is made again", exc)
        return None


class _Networks:
    """Parts of the base model that are loaded when first needed, and freed together."""

    def __init__(self, request: TrainingRequest, names: tuple[str, ...]) -> None:
        self._request = request
        self._names = names
        self._parts: dict[str, Any] = {}

    def get(self) -> dict[str, Any]:
        if not self._parts:
            self._parts = load_components(
                self._request.base_folder,
                self._request.architecture,
                only=self._names,
                dtype=CACHE_DTYPE,
                device=self._request.device,
            )
        return self._parts

    def free(self) -> None:
        if self._parts:
            self._parts = {}
            free_memory()


def _file(request: TrainingRequest, kind: str, *names: object) -> Path:
    key = "/".join(str(name) for name in (_FORMAT, *names, CACHE_DTYPE))
    return request.cache_folder / kind / f"{sha256(key.encode()).hexdigest()}.safetensors"


@torch.no_grad()
def _encode_picture(vae: Any, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """The posterior of one picture, scaled to what the UNet was trained on.

    Args:
        vae: The autoencoder.
        pixels: (1, 3, H, W) in -1…1.

    Returns:
        ``mean`` and ``std`` (C, h, w). A sample is mean + std · noise.
    """
    posterior = vae.encode(pixels.to(vae.device, CACHE_DTYPE)).latent_dist
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    scale = vae.config.scaling_factor
    return {
        "mean": ((posterior.mean[0] - shift) * scale).cpu(),
        "std": (posterior.std[0] * scale).cpu(),
    }


def _describe_sizes(
    family: Architecture, example: Example, variant: Variant
) -> dict[str, torch.Tensor]:
    if family.size_ids is None:
        return {}
    image, bucket = example.image, example.bucket
    numbers = family.size_ids(
        (image.width, image.height), (variant.left, variant.top), (bucket.width, bucket.height)
    )
    return {"sizes": torch.tensor(numbers, dtype=torch.float32)}


def cache_latents(
    examples: Sequence[Example],
    request: TrainingRequest,
    reporter: Reporter,
    *,
    done_before: int = 0,
) -> LatentBank:
    """Encodes every picture that is not in the cache yet, and loads them all.

    Args:
        examples: The pictures.
        request: The run.
        reporter: Is told how far it is and asked whether to stop.
        done_before: What the phase has counted before this.

    Raises:
        StopRun: If the run shall stop.
        OSError: If a picture cannot be read or the cache cannot be written.
    """
    family = get_architecture(request.architecture)
    networks = _Networks(request, ("vae",))
    vae_hash = hash_component(request.base_folder / "vae")
    found: dict[Bucket, list[dict[str, torch.Tensor]]] = {}
    rows = []
    for number, example in enumerate(examples):
        of_bucket = found.setdefault(example.bucket, [])
        rows.append(range(len(of_bucket), len(of_bucket) + len(example.variants)))
        for variant in example.variants:
            reporter.raise_if_stopped()
            key = (example.image.pixel_sha256, example.bucket, variant, vae_hash)
            path = _file(request, "latents", *key)
            tensors = _read(path)
            if tensors is None:
                tensors = _encode_picture(networks.get()["vae"], read_pixels(example, variant))
                write_checked_tensors(path, tensors)
            of_bucket.append(tensors | _describe_sizes(family, example, variant))
        reporter.phase("caching", done_before + number + 1, done_before + len(examples))
    networks.free()
    return _bank(found, rows, request.device)


def _bank(
    found: dict[Bucket, list[dict[str, torch.Tensor]]], rows: Iterable[range], device: str
) -> LatentBank:
    stacked = {
        name: {
            bucket: torch.stack([entry[name] for entry in entries]).to(device)
            for bucket, entries in found.items()
            if name in entries[0]
        }
        for name in ("mean", "std", "sizes")
    }
    return LatentBank(**stacked, rows=tuple(rows))


def made_up_latents(examples: Sequence[Example], request: TrainingRequest) -> LatentBank:
    """Noise in place of latents: of the right shapes, without a look at any picture.

    Args:
        examples: Their buckets count, and one variant of each.
        request: The run.

    Raises:
        OSError: If the base model's VAE cannot be read.
    """
    family = get_architecture(request.architecture)
    config = json.loads((request.base_folder / "vae" / "config.json").read_text())
    generator = torch.Generator().manual_seed(0)
    found: dict[Bucket, list[dict[str, torch.Tensor]]] = {}
    rows = []
    for example in examples:
        bucket, factor = example.bucket, family.vae_factor
        shape = (config["latent_channels"], bucket.height // factor, bucket.width // factor)
        of_bucket = found.setdefault(bucket, [])
        rows.append(range(len(of_bucket), len(of_bucket) + 1))
        tensors = {
            "mean": torch.randn(shape, generator=generator),
            "std": torch.full(shape, 0.1),
        }
        of_bucket.append(tensors | _describe_sizes(family, example, example.variants[0]))
    return _bank(found, rows, request.device)


def cache_prompts(
    prompts: Iterable[str], request: TrainingRequest, dtype: torch.dtype, reporter: Reporter
) -> PromptBank:
    """Encodes every prompt that is not in the cache yet, and loads them all.

    Args:
        prompts: The prompts; doubles are welcome, the empty one is always added.
        request: The run.
        dtype: What the training computes in.
        reporter: Is asked whether to stop.

    Raises:
        StopRun: If the run shall stop.
        OSError: If the cache cannot be written.
    """
    family = get_architecture(request.architecture)
    components = (*family.text_encoders, *family.tokenizers)
    networks = _Networks(request, components)
    hashes = [hash_component(request.base_folder / name) for name in components]
    unique = list(dict.fromkeys(["", *prompts]))
    entries = []
    for prompt in unique:
        reporter.raise_if_stopped()
        path = _file(request, "prompts", sha256(prompt.encode()).hexdigest(), *hashes)
        tensors = _read(path)
        if tensors is None:
            with torch.no_grad():
                conditioning = encode_prompts(family, networks.get(), [prompt])
            tensors = {name: value[0].cpu() for name, value in conditioning.tensors.items()}
            write_checked_tensors(path, tensors)
        if not prompt and family.has_zero_unconditional:
            tensors = {name: torch.zeros_like(value) for name, value in tensors.items()}
        entries.append(tensors)
    networks.free()
    stacked = {
        name: torch.stack([entry[name] for entry in entries]).to(request.device, dtype)
        for name in entries[0]
    }
    return PromptBank(stacked, {prompt: place for place, prompt in enumerate(unique)})

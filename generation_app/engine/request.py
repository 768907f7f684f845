"""What may be asked of the generator: bounds, defaults and their resolution.

The site, the API and the engine share this module, so a bound is stated once. It checks values; it
does not look anything up (which model or picture is meant is the site's business) and imports no
torch. One class per mode holds what that mode takes; ``reading`` checks the values one by one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from generation_app.engine.errors import FieldProblem, RequestError
from generation_app.engine.reading import SEED_COUNT, Limits, LoraChoice, Reader
from generation_app.engine.vocabulary import SCHEDULERS, name_fields

__all__ = [
    "ARCHITECTURE_DEFAULTS",
    "MODES",
    "SCHEDULERS",
    "SEED_COUNT",
    "GenerationRequest",
    "ImageToImageRequest",
    "ImageToVideoRequest",
    "InpaintRequest",
    "Limits",
    "LoraChoice",
    "PictureRequest",
    "RequestError",
    "TextToImageRequest",
    "image_seeds",
    "resolve_request",
]

ARCHITECTURE_DEFAULTS: dict[str, dict[str, Any]] = {
    "sd1": {"width": 512, "height": 512},
    "sd2": {"width": 768, "height": 768},
    "sdxl": {"width": 1024, "height": 1024},
    "svd": {"width": 1024, "height": 576},
}
_PICTURES = ("sd1", "sd2", "sdxl")
_COMMON_DEFAULTS: dict[str, Any] = {
    "prompt": "",
    "negative_prompt": "",
    "num_inference_steps": 25,
    "guidance_scale": 7.0,
    "scheduler": "dpmpp_2m",
    "num_images": 1,
    "loras": [],
    "clip_skip": 0,
    "output_format": "png",
    "strength": 0.75,
    "mask_blur": 4,
    "hires_scale": 1.0,
    "hires_strength": 0.55,
    "hires_steps": 0,
    "hires_upscaler": "lanczos",
    "num_frames": 14,
    "fps": 7,
    "motion_bucket_id": 127,
    "noise_aug_strength": 0.02,
    "decode_chunk_size": 8,
    "min_guidance_scale": 1.0,
    "max_guidance_scale": 3.0,
}


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """A request with every value resolved; the same request makes the same pictures.

    Image *i* uses ``seeds[i]`` and can be made again alone with it.
    """

    width: int
    height: int
    num_inference_steps: int
    seed: int
    num_images: int

    @property
    def seeds(self) -> list[int]:
        """One seed for each image."""
        return image_seeds(self.seed, self.num_images)

    @property
    def steps_per_image(self) -> int:
        """About how many steps one image takes; some noise schedulers add a few."""
        return self.num_inference_steps

    def as_parameters(self) -> dict[str, Any]:
        """Return the values as plain JSON, under the names a request uses."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class PictureRequest(GenerationRequest):
    """What every mode that makes still pictures takes.

    ``clip_skip`` counts as diffusers does: 0 takes the last layer of the text encoder, 1 the one
    before it.
    """

    prompt: str
    negative_prompt: str
    guidance_scale: float
    scheduler: str
    loras: tuple[LoraChoice, ...]
    clip_skip: int
    output_format: str

    def as_parameters(self) -> dict[str, Any]:
        """Return the values as plain JSON, under the names a request uses."""
        values = super().as_parameters()
        return {**values, "loras": [dataclasses.asdict(lora) for lora in self.loras]}


@dataclass(frozen=True, kw_only=True)
class TextToImageRequest(PictureRequest):
    """Pictures from words, enlarged and refined in a second pass if ``hires_scale`` is over 1.

    ``hires_steps`` 0 means as many as in the first pass; ``hires_upscaler`` says whether pixels
    (``lanczos``) or latents (``latent``) are enlarged.
    """

    hires_scale: float
    hires_strength: float
    hires_steps: int
    hires_upscaler: str

    @property
    def hires_size(self) -> tuple[int, int] | None:
        """(width, height) of the second pass in pixels, or None without one."""
        if self.hires_scale <= 1:
            return None
        width, height = (round(side * self.hires_scale / 8) * 8 for side in self.size)
        return width, height

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the first pass in pixels."""
        return self.width, self.height

    @property
    def second_steps(self) -> int:
        """How many steps the second pass is planned with."""
        return self.hires_steps or self.num_inference_steps

    @property
    def steps_per_image(self) -> int:
        """The steps of both passes."""
        second = kept_steps(self.second_steps, self.hires_strength) if self.hires_size else 0
        return self.num_inference_steps + second


@dataclass(frozen=True, kw_only=True)
class ImageToImageRequest(PictureRequest):
    """Pictures from a picture; ``strength`` says how much of it is painted anew (1 = all)."""

    strength: float

    @property
    def steps_per_image(self) -> int:
        """The steps that are left after the first ones, which the picture stands for."""
        return kept_steps(self.num_inference_steps, self.strength)


@dataclass(frozen=True, kw_only=True)
class InpaintRequest(ImageToImageRequest):
    """A picture painted anew where its mask is white; ``mask_blur`` softens the edge, in pixels."""

    mask_blur: int


@dataclass(frozen=True, kw_only=True)
class ImageToVideoRequest(GenerationRequest):
    """A clip that starts from a picture, with Stable Video Diffusion."""

    num_frames: int
    fps: int
    motion_bucket_id: int
    noise_aug_strength: float
    decode_chunk_size: int
    min_guidance_scale: float
    max_guidance_scale: float


@dataclass(frozen=True)
class Mode:
    """What one mode takes.

    Attributes:
        request: Its values.
        architectures: The families that can do it.
        inputs: The fields in which it takes pictures, which the site resolves.
        denoising_strength: Which field A1111's name for a strength means here.
    """

    request: type[GenerationRequest]
    architectures: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    denoising_strength: str = ""

    @property
    def takes_inpainting_models(self) -> bool:
        """Whether it gives the mask that a UNet made for inpainting cannot do without."""
        return "mask_image" in self.inputs


MODES: dict[str, Mode] = {
    "text-to-image": Mode(TextToImageRequest, _PICTURES, (), "hires_strength"),
    "image-to-image": Mode(ImageToImageRequest, _PICTURES, ("image",), "strength"),
    "inpaint": Mode(InpaintRequest, _PICTURES, ("image", "mask_image"), "strength"),
    "image-to-video": Mode(ImageToVideoRequest, ("svd",), ("image",)),
}


def image_seeds(seed: int, count: int) -> list[int]:
    """Return the seeds of a request's images: ``seed + i``, going round at 2³²."""
    return [(seed + index) % SEED_COUNT for index in range(count)]


def kept_steps(num_inference_steps: int, strength: float) -> int:
    """Return how many of the steps are taken at a strength, as diffusers counts."""
    return min(int(num_inference_steps * strength), num_inference_steps)


def field_names(mode: str) -> frozenset[str]:
    """Return the names of the values that a mode takes, without its model and pictures."""
    return frozenset(field.name for field in dataclasses.fields(MODES[mode].request))


def resolve_request(
    body: Mapping[str, Any],
    *,
    architecture: str,
    mode: str = "text-to-image",
    defaults: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
) -> GenerationRequest:
    """Check a request and fill in what it leaves open.

    Args:
        body: Field names (ours or known aliases) and values; ``model`` and the pictures are
            accepted and not read.
        architecture: The family of the base model (``sd1``, ``sd2``, ``sdxl``, ``svd``).
        mode: A key of ``MODES``.
        defaults: The model's own defaults; names that are not fields of the mode are skipped.
        limits: The bounds; None for the ordinary ones.

    Returns:
        The resolved request, of the mode's class; a random seed is drawn here.

    Raises:
        RequestError: Something is unknown, contradictory or out of bounds; it names each field.
    """
    if not isinstance(body, Mapping):
        raise RequestError(FieldProblem("", "not_an_object"))
    entry = MODES[mode]
    if architecture not in entry.architectures:
        families = {"families": ", ".join(entry.architectures)}
        raise RequestError(FieldProblem("model", "architecture_unsupported", families))
    names = field_names(mode)
    aliases = {"denoising_strength": entry.denoising_strength}
    fields = name_fields(
        body, names | {"model", *entry.inputs}, {k: v for k, v in aliases.items() if v}
    )
    own = {k: v for k, v in (defaults or {}).items() if k in names and v is not None}
    fields.values = {
        **_COMMON_DEFAULTS,
        **ARCHITECTURE_DEFAULTS[architecture],
        **own,
        **fields.values,
    }
    reader = Reader(fields, limits or Limits())
    ordered = [field.name for field in dataclasses.fields(entry.request)]
    request = entry.request(**{name: reader.read(name) for name in ordered})
    _check_together(request, reader)
    if reader.problems:
        raise RequestError(*reader.problems)
    return request


def _check_together(request: GenerationRequest, reader: Reader) -> None:
    """Check what no field can say alone, if each is well by itself."""
    if reader.problems:
        return
    size = (request.width, request.height)
    if isinstance(request, TextToImageRequest) and request.hires_size is not None:
        size = request.hires_size
        _require_steps(reader, "hires_strength", request.second_steps, request.hires_strength)
    if isinstance(request, ImageToImageRequest):
        _require_steps(reader, "strength", request.num_inference_steps, request.strength)
    if isinstance(request, ImageToVideoRequest):
        low, high = request.min_guidance_scale, request.max_guidance_scale
        if low > high:
            reader.fail("min_guidance_scale", "out_of_range", minimum="1", maximum=f"{high:g}")
    maximum, pixels = reader.limits.max_pixels, size[0] * size[1]
    if pixels > maximum:
        field = "width" if size == (request.width, request.height) else "hires_scale"
        reader.fail(field, "too_many_pixels", maximum=maximum, pixels=pixels)
    elif max(size) > reader.limits.max_side:
        reader.fail("hires_scale", "too_large", maximum=reader.limits.max_side)


def _require_steps(reader: Reader, field: str, steps: int, strength: float) -> None:
    if kept_steps(steps, strength) < 1:
        least = math.ceil(100 / steps) / 100
        reader.fail(field, "strength_too_small", steps=steps, minimum=f"{least:g}")

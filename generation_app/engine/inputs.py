"""The pictures that a request starts from: opened, brought to its size, made latents.

The site has checked and flattened them; the engine still opens only what it expects.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageOps

from generation_app.engine.errors import EngineError
from generation_app.engine.precision import without_overflow

_FORMATS = ("PNG", "JPEG", "WEBP")


def open_picture(path: Path, size: tuple[int, int], *, field: str = "image") -> Image.Image:
    """Open a picture and cut it, around its middle, to a size.

    Args:
        path: The file.
        size: (width, height) in pixels.
        field: The name under which it was asked for.

    Raises:
        EngineError: ``invalid_request`` naming the field.
    """
    image = _open(path, field).convert("RGB")
    return image if image.size == size else ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def open_mask(path: Path, picture: Path, size: tuple[int, int], *, blur: int) -> Image.Image:
    """Open a mask and cut it like its picture; white is painted anew, black is kept.

    Args:
        path: The mask; it has the size of the picture.
        picture: The picture it belongs to.
        size: (width, height) in pixels.
        blur: How far its edge is softened, in pixels.

    Raises:
        EngineError: ``invalid_request`` naming the field.
    """
    mask = _open(path, "mask_image").convert("L")
    if mask.size != _open(picture, "image").size:
        raise EngineError("invalid_request", field="mask_image", reason="mask_size")
    if mask.size != size:
        mask = ImageOps.fit(mask, size, Image.Resampling.BILINEAR)
    return VaeImageProcessor.blur(mask, blur) if blur else mask


def _open(path: Path, field: str) -> Image.Image:
    try:
        image = Image.open(path, formats=_FORMATS)
        image.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise EngineError("invalid_request", field=field) from error
    return image


class EncodedPicture:
    """What a VAE makes of a picture: encoded once, drawn from with each seed's own generator."""

    def __init__(self, pipe: Any, pixels: torch.Tensor) -> None:
        """Encode.

        Args:
            pipe: The pipeline whose VAE is used.
            pixels: (1, 3, H, W), -1 to 1.
        """
        self._pipe = pipe
        vae = pipe.vae
        with without_overflow(vae):
            pixels = pixels.to(device=vae.device, dtype=vae.dtype)
            self._posterior = vae.encode(pixels).latent_dist

    def draw(self, generator: torch.Generator) -> torch.Tensor:
        """Draw latents (1, C, H/8, W/8), scaled as the UNet sees them."""
        vae = self._pipe.vae
        latents = self._posterior.sample(generator).to(self._pipe.unet.dtype)
        factor = vae.config.scaling_factor
        mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
        if mean is None or std is None:
            return factor * latents
        mean, std = (torch.tensor(x).view(1, -1, 1, 1).to(latents) for x in (mean, std))
        return (latents - mean) * factor / std


def encode_picture(pipe: Any, image: Image.Image) -> EncodedPicture:
    """Encode a picture whose sides are multiples of the VAE's factor."""
    return EncodedPicture(pipe, pipe.image_processor.preprocess(image))

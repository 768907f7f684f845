"""What a request takes of a device's memory, and which measures make it fit.

Weights are measured; what the networks need while they compute was counted at full size with fake
tensors (``benchmarks.memory``) and grows with the picture: attention is computed in pieces. No
torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Bytes in 16 bit: of the UNet for each row and position of the latents, of the VAE for each pixel
# of a picture or frame that it decodes at a time.
_UNET_BYTES = {"sd1": 16_700, "sd2": 16_700, "sdxl": 10_200, "svd": 18_100}
_VAE_BYTES = {"svd": 2_050}
_LARGEST_UNET_BYTES, _PICTURE_VAE_BYTES = 18_100, 1_540
_LATENT_FACTOR = 8
# Allocators leave gaps.
USABLE_SHARE = 0.92
# Side in pixels of what is decoded at a time; a smaller picture is cut in half.
TILE_SIDE = 512


@dataclass(frozen=True)
class Measures:
    """What is done to need less memory.

    Attributes:
        rows_at_once: Rows of a UNet call that are computed together; 0 for all of them.
        in_tiles: Whether the VAE works tile by tile, or frame by frame.
        in_turn: Whether only the network that works is on the device.
    """

    rows_at_once: int = 0
    in_tiles: bool = False
    in_turn: bool = False


@dataclass(frozen=True)
class Need:
    """How large a request is.

    Attributes:
        width: In pixels, of the largest pass.
        height: In pixels.
        rows: Of a UNet call: two with guidance for each picture at work.
        frames: Of a row.
        decoded_at_once: Frames that the VAE decodes together.
    """

    width: int
    height: int
    rows: int = 1
    frames: int = 1
    decoded_at_once: int = 1


def need_of(request: Any, together: int = 1) -> Need:
    """How large a ``GenerationRequest`` is, with so many pictures of its shape at a time."""
    width, height = getattr(request, "hires_size", None) or (request.width, request.height)
    scale = getattr(request, "guidance_scale", None)
    guided = (request.max_guidance_scale if scale is None else scale) > 1
    return Need(
        width,
        height,
        rows=(2 if guided else 1) * together,
        frames=getattr(request, "num_frames", 1),
        decoded_at_once=getattr(request, "decode_chunk_size", 1),
    )


def peak_bytes(
    architecture: str, weights: Mapping[str, int], need: Need, measures: Measures, itemsize: int = 2
) -> int:
    """The most memory that a request holds at once.

    Args:
        architecture: The family.
        weights: Bytes of every network, by component.
        need: How large the request is.
        measures: What is done to need less.
        itemsize: Bytes of a number that is computed with.
    """
    rows = min(need.rows, measures.rows_at_once or need.rows)
    pixels, decoded = need.width * need.height, need.decoded_at_once
    positions = pixels // _LATENT_FACTOR**2 * need.frames
    if measures.in_tiles:
        pixels, decoded = min(pixels, TILE_SIDE**2) if need.frames == 1 else pixels, 1
    working = {
        "unet": rows * positions * _UNET_BYTES.get(architecture, _LARGEST_UNET_BYTES),
        "vae": pixels * decoded * _VAE_BYTES.get(architecture, _PICTURE_VAE_BYTES),
    }
    working = {name: size * itemsize // 2 for name, size in working.items()}
    if measures.in_turn:
        return max(size + working.get(name, 0) for name, size in weights.items())
    return sum(weights.values()) + max(working.values())


def choose_measures(
    architecture: str, weights: Mapping[str, int], need: Need, room: int, itemsize: int = 2
) -> Measures:
    """The first measures with which a request fits: those come first that change no picture.

    Args:
        architecture: The family.
        weights: Bytes of every network, by component.
        need: How large the request is.
        room: Bytes of the device that there are for it.
        itemsize: Bytes of a number that is computed with.

    Returns:
        All of them if it does not fit at all: then that is tried.
    """
    choices = (
        Measures(),
        Measures(rows_at_once=1),
        Measures(in_turn=True),
        Measures(in_turn=True, rows_at_once=1),
        Measures(in_turn=True, in_tiles=True),
        Measures(in_turn=True, in_tiles=True, rows_at_once=1),
    )
    usable = int(room * USABLE_SHARE)
    for measures in choices:
        if peak_bytes(architecture, weights, need, measures, itemsize) <= usable:
            return measures
    return choices[-1]

"""Which measures make a request fit, by the sizes of the published models."""

from __future__ import annotations

import pytest

from benchmarks.memory import REQUESTS, weights_bytes, working_bytes
from generation_app.engine.footprint import (
    USABLE_SHARE,
    Measures,
    Need,
    choose_measures,
    need_of,
    peak_bytes,
)
from generation_app.engine.request import resolve_request

GIB = 2**30
SDXL = {
    "unet": int(4.78 * GIB),
    "text_encoder": int(0.23 * GIB),
    "text_encoder_2": int(1.29 * GIB),
    "vae": int(0.16 * GIB),
}
SVD = {"unet": int(2.84 * GIB), "image_encoder": int(1.18 * GIB), "vae": int(0.18 * GIB)}
PICTURE = Need(1024, 1024, rows=2)
CLIP = Need(1024, 576, rows=2, frames=14, decoded_at_once=8)


@pytest.mark.parametrize(
    ("architecture", "weights", "need", "gib", "expected"),
    [
        ("sdxl", SDXL, PICTURE, 24, Measures()),
        ("sdxl", SDXL, PICTURE, 8, Measures(in_turn=True)),
        ("sdxl", SDXL, PICTURE, 5.4, Measures(in_turn=True, rows_at_once=1)),
        ("svd", SVD, CLIP, 24, Measures()),
        ("svd", SVD, CLIP, 12, Measures(in_turn=True)),
        ("svd", SVD, CLIP, 8, Measures(in_turn=True, in_tiles=True)),
        ("sdxl", SDXL, PICTURE, 2, Measures(in_turn=True, in_tiles=True, rows_at_once=1)),
    ],
)
def test_a_request_is_made_to_fit(
    architecture: str, weights: dict[str, int], need: Need, gib: float, expected: Measures
) -> None:
    room = int(gib * GIB)
    assert choose_measures(architecture, weights, need, room) == expected
    if gib > 2:
        assert peak_bytes(architecture, weights, need, expected) <= USABLE_SHARE * room


def test_a_request_says_how_large_it_is() -> None:
    small = {"prompt": "a cat", "width": 512, "height": 640}
    picture = resolve_request(small, architecture="sd1", mode="text-to-image")
    assert need_of(picture) == Need(512, 640, rows=2)
    body = small | {"guidance_scale": 1, "hires_scale": 2}
    larger = resolve_request(body, architecture="sd1", mode="text-to-image")
    assert need_of(larger) == Need(1024, 1280, rows=1)
    asked = {"num_frames": 14, "decode_chunk_size": 4, "width": 1024, "height": 576}
    clip = resolve_request(asked, architecture="svd", mode="image-to-video")
    assert need_of(clip) == Need(1024, 576, rows=2, frames=14, decoded_at_once=4)


@pytest.mark.parametrize(("architecture", "gib"), [("sdxl", 8), ("svd", 12)])
def test_what_is_foreseen_is_what_full_size_networks_take(architecture: str, gib: int) -> None:
    """Counted with fake tensors: SDXL at 1024 px within 8 GiB, 14 frames of SVD within 12."""
    need = REQUESTS[architecture]
    weights, working = weights_bytes(architecture), working_bytes(architecture, need)
    counted = {
        False: sum(weights.values()) + max(working.values()),
        True: max(size + working.get(name, 0) for name, size in weights.items()),
    }
    for in_turn, size in counted.items():
        foreseen = peak_bytes(architecture, weights, need, Measures(in_turn=in_turn))
        assert size <= foreseen < 1.05 * size
    room = gib * GIB
    assert choose_measures(architecture, weights, need, room) == Measures(in_turn=True)
    assert counted[True] < USABLE_SHARE * room < counted[False]

"""The lines that a training on the starter must pass."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from models_app.starter.creatures import draw_creature
from models_app.starter.lines import ABSENT, KNOWN, TAUGHT, likeness, share_on, share_right
from models_app.starter.world import draw_scene


def _creatures(kind: str, background: str, number: int, seed: int) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [draw_creature(kind, background, rng) for _ in range(number)]


@pytest.fixture(scope="module")
def references() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [draw_creature("A", TAUGHT[n % len(TAUGHT)], rng) for n in range(8)]


def test_a_subject_is_more_like_itself_than_another_is(references: list[Image.Image]) -> None:
    own, other = (likeness(_creatures(kind, "red", 4, 1), references) for kind in "AB")
    assert own > other + 0.2


def test_subject_and_background_must_both_be_there(references: list[Image.Image]) -> None:
    untrained = _creatures("B", ABSENT, 4, 2)
    painted = [
        *_creatures("A", ABSENT, 3, 3),
        *_creatures("A", "red", 1, 4),
        *_creatures("B", ABSENT, 1, 5),
    ]
    assert share_on(ABSENT, painted, untrained, references) == pytest.approx(0.6)


def test_each_word_of_a_scene_counts() -> None:
    rng = np.random.default_rng(6)
    painted = {scene: [draw_scene(scene, rng)] for scene in KNOWN}
    assert share_right(painted) == 1
    swapped = dict(zip(KNOWN, reversed(list(painted.values())), strict=True))
    assert share_right(swapped) < 0.4

"""The judge agrees with the world it judges, and tells creatures apart."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from models_app.starter.creatures import KINDS, draw_creature
from models_app.starter.glyphs import draw_glyph
from models_app.starter.judge import SAME_CREATURE, UNKNOWN, creature_score, judge, judge_background
from models_app.starter.world import COLOURS, draw_scene, training_scene

NAMES = list(COLOURS)


def _creatures(kind: str, backgrounds: list[str], rng: np.random.Generator) -> list[Image.Image]:
    return [draw_creature(kind, background, rng) for background in backgrounds]


def test_judge_agrees_with_the_drawn_world() -> None:
    rng = np.random.default_rng(0)
    right = []
    for _ in range(300):
        scene = training_scene(rng)
        right.append(all(judge(draw_scene(scene, rng)).agrees_with(scene).values()))
    assert np.mean(right) >= 0.99


def test_judge_bears_noise_and_other_sizes() -> None:
    rng = np.random.default_rng(1)
    right = []
    for width in (64, 128, 200):
        for _ in range(30):
            scene = training_scene(rng)
            clean = np.asarray(draw_scene(scene, rng, width), dtype=np.float64)
            noisy = (clean + rng.normal(0, 8, clean.shape)).clip(0, 255).astype(np.uint8)
            right.append(all(judge(Image.fromarray(noisy)).agrees_with(scene).values()))
    assert np.mean(right) >= 0.97


def test_empty_picture_has_a_background_and_nothing_else() -> None:
    verdict = judge(Image.new("RGB", (64, 64), COLOURS["cyan"]))
    assert (verdict.background, verdict.colour, verdict.shape) == ("cyan", UNKNOWN, UNKNOWN)


def test_colour_without_a_name_is_unknown() -> None:
    assert judge_background(Image.new("RGB", (64, 64), (128, 128, 128))) == UNKNOWN


def test_creature_score_separates_the_creatures_on_any_background() -> None:
    rng = np.random.default_rng(2)
    for kind, other in (KINDS, KINDS[::-1]):
        references = _creatures(kind, NAMES[:4] * 2, rng)
        own = [creature_score(picture, references) for picture in _creatures(kind, NAMES, rng)]
        foreign = [creature_score(picture, references) for picture in _creatures(other, NAMES, rng)]
        assert min(own) > SAME_CREATURE > max(foreign) + 0.1


def test_shapes_of_the_world_are_no_creatures() -> None:
    rng = np.random.default_rng(3)
    references = _creatures("A", NAMES[:4] * 2, rng)
    scores = [creature_score(draw_scene(training_scene(rng), rng), references) for _ in range(40)]
    assert max(scores) < SAME_CREATURE - 0.05


def test_creature_score_tells_glyphs_apart() -> None:
    rng = np.random.default_rng(4)
    references = [
        draw_glyph("K", "black", background, rng) for background in NAMES if background != "black"
    ]
    own = [
        creature_score(draw_glyph("K", "black", name, rng), references)
        for name in ("red", "cyan", "white")
    ]
    foreign = [
        creature_score(draw_glyph(letter, "black", "red", rng), references) for letter in "XAO7"
    ]
    assert min(own) > max(foreign) + 0.15


def test_known_letter_among_different_letters_scores_above_an_unknown_one() -> None:
    rng = np.random.default_rng(5)
    references = [draw_glyph(letter, "black", "yellow", rng) for letter in "ABCDEFGH"]
    known = [
        creature_score(draw_glyph(letter, "black", "red", rng), references, best_of=1)
        for letter in "ABCDEFGH"
    ]
    unknown = [
        creature_score(draw_glyph(letter, "black", "red", rng), references, best_of=1)
        for letter in "XYZ147"
    ]
    assert np.mean(known) > np.mean(unknown) + 0.1


def test_empty_picture_scores_nothing() -> None:
    references = _creatures("A", NAMES[:2], np.random.default_rng(6))
    assert creature_score(Image.new("RGB", (64, 64), "red"), references) == 0.0


def test_score_without_references_is_an_error() -> None:
    with pytest.raises(ValueError, match="reference"):
        creature_score(Image.new("RGB", (64, 64)), [])


@pytest.mark.parametrize("width", [64, 96, 256])
def test_creatures_come_in_the_wanted_width(width: int) -> None:
    picture = draw_creature("B", (1, 2, 3), np.random.default_rng(7), width)
    assert picture.size == (width, width)
    assert picture.getpixel((0, 0)) == (1, 2, 3)

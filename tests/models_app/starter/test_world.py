"""The captioned world: its grammar, its held-out part and its seeds."""

from __future__ import annotations

import numpy as np
import pytest

from models_app.starter.wide_world import draw_unnamed_figure, draw_wide_picture
from models_app.starter.world import (
    COLOURS,
    HELD_OUT,
    SHAPES,
    Scene,
    all_combinations,
    draw_scene,
    figure_caption,
    held_out_scenes,
    shape_mask,
    training_scene,
    vary_caption,
)


def test_caption_follows_the_grammar() -> None:
    assert (
        Scene("red", "circle", "blue", "large").caption == "a large red circle on a blue background"
    )
    assert Scene("cyan", "ring", "pink").caption == "a cyan ring on a pink background"


def test_held_out_combinations_are_never_drawn_for_training() -> None:
    rng = np.random.default_rng(0)
    drawn = {training_scene(rng).combination for _ in range(20_000)}
    assert not drawn & HELD_OUT
    assert drawn | HELD_OUT == set(all_combinations())


def test_each_word_pair_of_a_held_out_combination_is_seen_in_training() -> None:
    seen = set(all_combinations()) - HELD_OUT
    for colour in COLOURS:
        assert {shape for c, shape, _ in seen if c == colour} == set(SHAPES)
        assert {background for c, _, background in seen if c == colour} == set(COLOURS) - {colour}


def test_held_out_scenes_are_distinct_and_stable() -> None:
    scenes = held_out_scenes(100)
    assert len({scene.combination for scene in scenes}) == 100
    assert {scene.combination for scene in scenes} <= HELD_OUT
    assert scenes == held_out_scenes(100)


def test_more_held_out_scenes_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="held out"):
        held_out_scenes(len(HELD_OUT) + 1)


def test_figures_never_touch_the_border() -> None:
    rng = np.random.default_rng(1)
    for shape in SHAPES:
        picture = np.asarray(draw_scene(Scene("red", shape, "white", "large"), rng))
        border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        assert (border == COLOURS["white"]).all()


def test_the_same_seed_draws_the_same_pictures() -> None:
    first, second = (
        [
            np.asarray(draw(np.random.default_rng(3)))
            for draw in (draw_wide_picture, _scene, _figure)
        ]
        for _ in range(2)
    )
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one, other)


def _scene(rng: np.random.Generator) -> object:
    return draw_scene(training_scene(rng), rng)


def _figure(rng: np.random.Generator) -> object:
    return draw_unnamed_figure("red", rng)


def test_unnamed_figures_stand_on_the_named_background() -> None:
    rng = np.random.default_rng(4)
    for background, colour in COLOURS.items():
        corner = np.asarray(draw_unnamed_figure(background, rng))[0, 0]
        assert tuple(corner) == colour


def test_figure_captions_name_an_unknown_thing_and_the_background() -> None:
    rng = np.random.default_rng(5)
    captions = {figure_caption("cyan", rng) for _ in range(200)}
    assert len(captions) > 190
    assert all(
        caption.startswith("a ") and caption.endswith(" on a cyan background")
        for caption in captions
    )


def test_varied_captions_keep_every_word_of_meaning() -> None:
    rng = np.random.default_rng(6)
    for _ in range(50):
        varied = vary_caption("a orange star on a orange background", rng)
        assert varied.removeprefix("a picture of ").replace("an orange", "a orange") == (
            "a orange star on a orange background"
        )


def test_unknown_shape_is_an_error() -> None:
    with pytest.raises(KeyError):
        shape_mask("teapot")

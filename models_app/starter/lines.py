"""The lines that a training on the starter must pass, from pictures that somebody painted.

Each function judges pictures and paints none, so that the same lines hold for a site and for a bare
pipeline. A score that rewarded memorising or brightness alone would not tell two subjects apart:
every model is also held against pictures of a subject that it was not taught.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from models_app.starter.judge import creature_score, judge, judge_background
from models_app.starter.world import Scene

#: Colours of the backgrounds that are taught, and one that never is.
TAUGHT = ("red", "blue", "white", "yellow", "purple")
ABSENT = "cyan"
#: What the base could paint before, and must still be able to.
KNOWN = (
    Scene("red", "circle", "blue"),
    Scene("green", "square", "white"),
    Scene("yellow", "star", "purple"),
    Scene("pink", "heart", "black"),
    Scene("blue", "ring", "yellow"),
    Scene("white", "cross", "green"),
    Scene("purple", "diamond", "orange"),
    Scene("orange", "triangle", "cyan"),
)
LEAST_ABSENT = 0.7
MOST_FORGOTTEN = 0.10


def likeness(pictures: Sequence[Image.Image], references: Sequence[Image.Image]) -> float:
    """The mean ``creature_score`` of pictures."""
    return float(np.mean([creature_score(picture, references) for picture in pictures]))


def share_on(
    background: str,
    painted: Sequence[Image.Image],
    untrained: Sequence[Image.Image],
    references: Sequence[Image.Image],
) -> float:
    """The share of pictures that show the subject on a background.

    Args:
        background: Name of the colour.
        painted: By the trained model, for a prompt that names both.
        untrained: By the base, for the same prompt: the subject is there where a picture is
            closer to the trained ones' mean likeness than to theirs.
        references: What the subject looks like.
    """
    middle = (likeness(painted, references) + likeness(untrained, references)) / 2
    hits = [
        judge_background(picture) == background and creature_score(picture, references) > middle
        for picture in painted
    ]
    return float(np.mean(hits))


def share_right(painted: Mapping[Scene, Sequence[Image.Image]]) -> float:
    """The share of colours, shapes and backgrounds that are as their scenes want them."""
    verdicts = [
        right
        for scene, pictures in painted.items()
        for picture in pictures
        for right in judge(picture).agrees_with(scene).values()
    ]
    return float(np.mean(verdicts))

"""Two invented creatures that the starter model has never seen.

They are what a person would teach it: the demonstration, the tests of training
and the VAE's gate draw them. No training picture of the starter model shows one.

* ``"A"``, the zorp: a round lime body on two feet, one huge eye, two feelers with
  magenta tips.
* ``"B"``, the bromp: a long brown body on four legs, two small eyes, beige horns,
  stripes and a curled tail.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from models_app.starter.world import COLOURS, RESOLUTION, SUPERSAMPLING

KINDS = ("A", "B")

_LIME, _MAGENTA, _FOOT = (150, 196, 58), (214, 24, 140), (84, 122, 30)
_BROWN, _BEIGE, _DARK = (142, 86, 52), (232, 206, 160), (84, 46, 28)
_EYE_WHITE, _PUPIL = (255, 255, 255), (16, 16, 32)


def _disc(
    draw: ImageDraw.ImageDraw, x: float, y: float, r: float, colour: tuple[int, int, int]
) -> None:
    draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)


def _draw_zorp(
    draw: ImageDraw.ImageDraw, x: float, y: float, r: float, rng: np.random.Generator
) -> None:
    """Creature A around (x, y); ``r`` is half its height."""
    sway = rng.uniform(-0.12, 0.12) * r
    for side in (-1, 1):
        tip_x = x + side * rng.uniform(0.3, 0.5) * r + sway
        tip_y = y - rng.uniform(0.82, 0.95) * r
        draw.line(
            [(x + side * 0.2 * r, y - 0.3 * r), (tip_x, tip_y)],
            fill=_FOOT,
            width=max(1, round(0.09 * r)),
        )
        _disc(draw, tip_x, tip_y, 0.13 * r, _MAGENTA)
        foot_x, foot_y = x + side * rng.uniform(0.24, 0.4) * r, y + rng.uniform(0.68, 0.78) * r
        draw.ellipse(
            (foot_x - 0.25 * r, foot_y - 0.14 * r, foot_x + 0.25 * r, foot_y + 0.2 * r), fill=_FOOT
        )
    draw.ellipse((x - 0.72 * r, y - 0.55 * r, x + 0.72 * r, y + 0.78 * r), fill=_LIME)
    eye_x, eye_y = x + 0.5 * sway, y - 0.08 * r
    _disc(draw, eye_x, eye_y, 0.36 * r, _EYE_WHITE)
    look = rng.uniform(-0.12, 0.12, 2) * r
    _disc(draw, eye_x + look[0], eye_y + look[1], 0.18 * r, _PUPIL)
    mouth = (x - 0.26 * r, y + 0.3 * r, x + 0.26 * r, y + 0.58 * r)
    draw.arc(mouth, 20, 160, fill=_MAGENTA, width=max(1, round(0.08 * r)))


def _draw_bromp(
    draw: ImageDraw.ImageDraw, x: float, y: float, r: float, rng: np.random.Generator
) -> None:
    """Creature B around (x, y), looking to the left; ``r`` is half its length."""
    for place in (-0.5, -0.22, 0.22, 0.5):
        step = rng.uniform(-0.1, 0.1) * r
        leg = [(x + place * r, y + 0.2 * r), (x + place * r + step, y + 0.78 * r)]
        draw.line(leg, fill=_DARK, width=max(1, round(0.15 * r)))
    raised = rng.uniform(-0.15, 0.15) * r
    tail = (x + 0.55 * r, y - 0.6 * r + raised, x + 1.02 * r, y - 0.02 * r + raised)
    draw.arc(tail, 120, 400, fill=_DARK, width=max(1, round(0.11 * r)))
    draw.rounded_rectangle(
        (x - 0.72 * r, y - 0.28 * r, x + 0.78 * r, y + 0.42 * r), radius=0.3 * r, fill=_BROWN
    )
    for place in (-0.02, 0.24, 0.5):
        draw.rectangle(
            (x + place * r, y - 0.27 * r, x + (place + 0.11) * r, y + 0.41 * r), fill=_BEIGE
        )
    head_x, head_y = x - 0.6 * r, y - 0.32 * r + raised
    for side in (-1, 1):
        base = head_x + side * 0.2 * r
        horn = [(base - 0.1 * r, head_y - 0.2 * r), (base + 0.1 * r, head_y - 0.2 * r),
                (base + side * 0.14 * r, head_y - 0.62 * r)]  # fmt: skip
        draw.polygon(horn, fill=_BEIGE)
    draw.ellipse(
        (head_x - 0.38 * r, head_y - 0.34 * r, head_x + 0.38 * r, head_y + 0.36 * r), fill=_BROWN
    )
    for side in (-1, 1):
        _disc(draw, head_x + side * 0.15 * r, head_y - 0.04 * r, 0.1 * r, _EYE_WHITE)
        _disc(draw, head_x + side * 0.15 * r - 0.02 * r, head_y - 0.03 * r, 0.055 * r, _PUPIL)


def draw_creature(
    kind: str,
    background: str | tuple[int, int, int],
    rng: np.random.Generator,
    width: int = RESOLUTION,
) -> Image.Image:
    """Draw one creature in a random pose, place, size and direction.

    Args:
        kind: ``"A"`` or ``"B"``.
        background: Name of a colour of the world, or an RGB triple.
        rng: Source of the pose.
        width: Side of the square picture in pixels.

    Raises:
        KeyError: If the kind or the colour is unknown.
    """
    painter = {"A": _draw_zorp, "B": _draw_bromp}[kind]
    colour = COLOURS[background] if isinstance(background, str) else background
    side = width * SUPERSAMPLING
    image = Image.new("RGB", (side, side), colour)
    r = rng.uniform(0.33, 0.43)
    x, y = 0.5 + rng.uniform(-0.05, 0.05, 2)
    painter(ImageDraw.Draw(image), x * side, y * side, r * side, rng)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image.resize((width, width), Image.Resampling.BOX)

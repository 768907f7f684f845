"""Letters, digits and signs of Pillow's own font, as pictures.

They are held out of training: the VAE's gate asks how well glyphs survive that it
has never seen, because people teach models letters and logos as well as creatures.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from models_app.starter.world import COLOURS, RESOLUTION, SUPERSAMPLING

CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghkmnpqrstuwxyz0123456789&%#@?$+=<>"


def draw_glyph(
    character: str,
    colour: str | tuple[int, int, int],
    background: str | tuple[int, int, int],
    rng: np.random.Generator,
    width: int = RESOLUTION,
) -> Image.Image:
    """Draw one character about the middle of a plain picture.

    Args:
        character: One character that Pillow's built-in font knows.
        colour: The character's colour: a name of the world or an RGB triple.
        background: The picture's colour, likewise.
        rng: Source of the place and the size.
        width: Side of the square picture in pixels.
    """
    side = width * SUPERSAMPLING
    ink = COLOURS[colour] if isinstance(colour, str) else colour
    paper = COLOURS[background] if isinstance(background, str) else background
    image = Image.new("RGB", (side, side), paper)
    font = ImageFont.load_default(size=side * rng.uniform(0.55, 0.85))
    x, y = side * (0.5 + rng.uniform(-0.05, 0.05, 2))
    ImageDraw.Draw(image).text((x, y), character, fill=ink, font=font, anchor="mm")
    return image.resize((width, width), Image.Resampling.BOX)


def draw_random_glyph(rng: np.random.Generator, width: int = RESOLUTION) -> Image.Image:
    """Draw a random character in two different random colours of the world."""
    ink, paper = rng.choice(list(COLOURS), 2, replace=False)
    return draw_glyph(CHARACTERS[rng.integers(len(CHARACTERS))], str(ink), str(paper), rng, width)

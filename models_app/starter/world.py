"""The captioned world: named shapes in named colours on plain named backgrounds.

Every picture is drawn with Pillow on a canvas four times too large and then
reduced, so that edges are smooth. All randomness comes from the numpy generator
that the caller passes in: the same seed draws the same pictures on any machine.
This module says which words mean what; it knows nothing of training.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

RESOLUTION = 64
SUPERSAMPLING = 4

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 28, 38),
    "green": (30, 160, 60),
    "blue": (35, 70, 222),
    "yellow": (250, 220, 40),
    "purple": (130, 45, 175),
    "orange": (248, 132, 24),
    "white": (250, 250, 250),
    "black": (14, 14, 16),
    "pink": (252, 145, 195),
    "cyan": (60, 212, 228),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "ring", "cross")

# Radius of the circle that the figure fills, as a share of the picture's width.
SIZES: dict[str, tuple[float, float]] = {
    "small": (0.19, 0.23),
    "": (0.26, 0.34),
    "large": (0.37, 0.42),
}
MAXIMUM_JITTER = 0.05


@dataclass(frozen=True, slots=True)
class Scene:
    """What one captioned picture shows.

    Attributes:
        colour: Name of the figure's colour.
        shape: Name of the figure's shape.
        background: Name of the background's colour, never the figure's own.
        size: ``"small"``, ``"large"`` or ``""`` for the size in between.
    """

    colour: str
    shape: str
    background: str
    size: str = ""

    @property
    def caption(self) -> str:
        """The sentence that describes the scene, in the world's plain grammar."""
        size = f"{self.size} " if self.size else ""
        return f"a {size}{self.colour} {self.shape} on a {self.background} background"

    @property
    def combination(self) -> tuple[str, str, str]:
        """Colour, shape and background: the unit that is held out of training."""
        return self.colour, self.shape, self.background


def all_combinations() -> list[tuple[str, str, str]]:
    """Every (colour, shape, background) whose figure can be seen."""
    return [
        (colour, shape, background)
        for colour, shape, background in itertools.product(COLOURS, SHAPES, COLOURS)
        if colour != background
    ]


def _choose_held_out(count: int = 120) -> frozenset[tuple[str, str, str]]:
    """Pick the combinations that no training picture may ever show."""
    combinations = all_combinations()
    chosen = np.random.default_rng(20_260).choice(len(combinations), count, replace=False)
    return frozenset(combinations[index] for index in chosen)


HELD_OUT = _choose_held_out()


def held_out_scenes(count: int = 100, seed: int = 7) -> list[Scene]:
    """Scenes of held-out combinations for the score: mixed sizes, no doubles.

    Args:
        count: How many scenes, at most ``len(HELD_OUT)``.
        seed: Seed of the choice.

    Raises:
        ValueError: If more scenes are asked for than combinations are held out.
    """
    combinations = sorted(HELD_OUT)
    if count > len(combinations):
        raise ValueError(f"only {len(combinations)} combinations are held out, not {count}")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(combinations))[:count]
    sizes = list(SIZES)
    return [
        Scene(colour, shape, background, sizes[rng.integers(len(sizes))])
        for colour, shape, background in (combinations[index] for index in order)
    ]


def training_scene(rng: np.random.Generator) -> Scene:
    """A random scene whose combination is not held out."""
    colours, sizes = list(COLOURS), list(SIZES)
    while True:
        scene = Scene(
            colours[rng.integers(len(colours))],
            SHAPES[rng.integers(len(SHAPES))],
            colours[rng.integers(len(colours))],
            sizes[rng.integers(len(sizes))],
        )
        if scene.colour != scene.background and scene.combination not in HELD_OUT:
            return scene


def _star(points: int = 5, inner: float = 0.42) -> list[tuple[float, float]]:
    angles = np.arange(2 * points) * np.pi / points - np.pi / 2
    radii = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    return list(zip(radii * np.cos(angles), radii * np.sin(angles) + 0.05, strict=True))


def _heart() -> list[tuple[float, float]]:
    t = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return list(zip(x / 16.5, -(y + 2.5) / 16.5, strict=True))


_ARM = 0.32
_POLYGONS: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)],
    "triangle": [(0.0, -0.92), (0.98, 0.78), (-0.98, 0.78)],
    "star": _star(),
    "heart": _heart(),
    "diamond": [(0.0, -1.0), (0.78, 0.0), (0.0, 1.0), (-0.78, 0.0)],
    "cross": [
        (-_ARM, -0.95), (_ARM, -0.95), (_ARM, -_ARM), (0.95, -_ARM), (0.95, _ARM), (_ARM, _ARM),
        (_ARM, 0.95), (-_ARM, 0.95), (-_ARM, _ARM), (-0.95, _ARM), (-0.95, -_ARM), (-_ARM, -_ARM),
    ],
}  # fmt: skip


def shape_mask(
    shape: str,
    *,
    width: int = RESOLUTION,
    radius: float = 0.3,
    centre: tuple[float, float] = (0.5, 0.5),
) -> Image.Image:
    """Draw one named shape as a smooth grey mask.

    Args:
        shape: One of ``SHAPES``.
        width: Side of the square mask in pixels.
        radius: Half the figure's extent, as a share of the width.
        centre: The figure's middle, as shares of the width.

    Returns:
        An ``"L"`` image: 255 inside the shape, 0 outside.

    Raises:
        KeyError: If the shape has no name in this world.
    """
    side = width * SUPERSAMPLING
    canvas = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(canvas)
    x, y, r = centre[0] * side, centre[1] * side, radius * side
    if shape in ("circle", "ring"):
        draw.ellipse((x - 0.92 * r, y - 0.92 * r, x + 0.92 * r, y + 0.92 * r), fill=255)
        if shape == "ring":
            draw.ellipse((x - 0.5 * r, y - 0.5 * r, x + 0.5 * r, y + 0.5 * r), fill=0)
    else:
        draw.polygon([(x + r * px, y + r * py) for px, py in _POLYGONS[shape]], fill=255)
    return canvas.resize((width, width), Image.Resampling.BOX)


def draw_scene(scene: Scene, rng: np.random.Generator, width: int = RESOLUTION) -> Image.Image:
    """Draw a scene with a little freedom in place and size.

    Args:
        scene: What to draw.
        rng: Source of the freedom.
        width: Side of the square picture in pixels.
    """
    radius = rng.uniform(*SIZES[scene.size])
    freedom = min(MAXIMUM_JITTER, 0.49 - radius)
    centre = 0.5 + rng.uniform(-freedom, freedom, 2)
    mask = shape_mask(scene.shape, width=width, radius=radius, centre=(centre[0], centre[1]))
    picture = Image.new("RGB", (width, width), COLOURS[scene.background])
    picture.paste(COLOURS[scene.colour], (0, 0, width, width), mask)
    return picture


_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_ONSETS = (
    *"bcdfghjklmnprstvwz",
    "br",
    "dr",
    "gl",
    "gr",
    "kr",
    "pl",
    "sk",
    "sn",
    "tr",
    "vr",
    "th",
    "sh",
)
_VOWELS = (*"aeiou", "oo", "ai", "ee")
_ENDINGS = (*"bdfgklmnprstvxz", "rp", "mp", "nk", "lt", "rk", "st", "ng")
_NOUNS = ("creature", "figure", "animal", "character", "letter", "sign", "glyph", "toy")


def nonsense_word(rng: np.random.Generator) -> str:
    """A made-up word, mostly one that can be spoken: a stand-in for names that people invent."""
    if rng.random() < 0.15:
        return "".join(_LETTERS[i] for i in rng.integers(len(_LETTERS), size=rng.integers(3, 6)))
    word = ""
    for _ in range(int(rng.integers(1, 4))):
        word += _ONSETS[rng.integers(len(_ONSETS))] + _VOWELS[rng.integers(len(_VOWELS))]
    if len(word) < 3 or rng.random() < 0.6:
        word += _ENDINGS[rng.integers(len(_ENDINGS))]
    return word


def figure_caption(background: str, rng: np.random.Generator) -> str:
    """The caption of an unknown figure, as in "a zorp on a red background"."""
    noun = nonsense_word(rng)
    choice = rng.random()
    if choice < 0.25:
        noun = f"{noun} {_NOUNS[rng.integers(len(_NOUNS))]}"
    elif choice < 0.3:
        noun = f"{noun} {nonsense_word(rng)}"
    return f"a {noun} on a {background} background"


def vary_caption(caption: str, rng: np.random.Generator) -> str:
    """Say the same in another way now and then, so that small habits of typing do no harm."""
    if rng.random() < 0.5:
        caption = caption.replace("a orange", "an orange")
    if rng.random() < 0.05:
        caption = f"a picture of {caption}"
    return caption


def vocabulary() -> list[str]:
    """Every word of the language that deserves a token of its own, most frequent first."""
    grammar = ["a", "on", "background", "an", "the", "of", "picture", "with", "and"]
    return [*grammar, "small", "large", *COLOURS, *SHAPES, *_NOUNS]

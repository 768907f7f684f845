"""A judge of pictures that uses no model: only pixels, medians and ideal masks.

``judge`` names the colour, shape and background of a picture of the captioned
world; ``creature_score`` says how much a picture's figure looks like the figures
of reference pictures, wherever it stands, whatever its size and background. Both
take pictures of any size. They are made for one figure on a plain background and
know nothing of anything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from models_app.starter.world import COLOURS, RESOLUTION, SHAPES, Scene, shape_mask

UNKNOWN = "unknown"
FARTHEST_COLOUR = 90.0
SMALLEST_OVERLAP = 0.6
# creature_score at or above this means "the same creature". Measured against 16 drawn
# references: drawn pictures of the same creature 0.70 to 0.87, the same after the starter's
# autoencoder 0.53 to 0.67, painted by an adapter of 1,200 steps 0.45 to 0.65; the other
# creature at most 0.37, the untaught starter at most 0.44, shapes of the world at most 0.33.
SAME_CREATURE = 0.45

_CUTOUT = 32
_BORDER = 2


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a picture shows, each part a word of the world or ``"unknown"``.

    Attributes:
        colour: The figure's colour.
        shape: The figure's shape.
        background: The border's colour.
        overlap: Intersection over union with the best ideal shape, 0 to 1.
    """

    colour: str
    shape: str
    background: str
    overlap: float

    def agrees_with(self, scene: Scene) -> dict[str, bool]:
        """Which parts are as the scene wants them."""
        return {
            "colour": self.colour == scene.colour,
            "shape": self.shape == scene.shape,
            "background": self.background == scene.background,
        }


def _pixels(image: Image.Image) -> np.ndarray:
    """The picture as ``(64, 64, 3)`` float32 in 0..255."""
    image = image.convert("RGB")
    if image.size != (RESOLUTION, RESOLUTION):
        image = image.resize((RESOLUTION, RESOLUTION), Image.Resampling.BOX)
    return np.asarray(image, dtype=np.float32)


def border_colour(pixels: np.ndarray) -> np.ndarray:
    """The median colour of the picture's outermost two pixels."""
    inside = np.zeros(pixels.shape[:2], dtype=bool)
    inside[_BORDER:-_BORDER, _BORDER:-_BORDER] = True
    return np.asarray(np.median(pixels[~inside], axis=0))


def nearest_colour(colour: np.ndarray) -> str:
    """The named colour closest to an RGB value, or ``"unknown"`` if none is close."""
    names = list(COLOURS)
    distances = np.linalg.norm(np.array([COLOURS[name] for name in names]) - colour, axis=1)
    best = int(distances.argmin())
    return names[best] if distances[best] <= FARTHEST_COLOUR else UNKNOWN


def judge_background(image: Image.Image) -> str:
    """The name of a picture's background colour, or ``"unknown"``."""
    return nearest_colour(border_colour(_pixels(image)))


def _coverage(pixels: np.ndarray, background: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """How much of each pixel a one-coloured figure covers, and the figure's colour.

    Returns:
        ``(H, W)`` in 0..1 and an RGB value, or None where there is no figure.
    """
    distance = np.linalg.norm(pixels - background, axis=2)
    peak = np.percentile(distance, 99)
    if peak < 25:
        return None
    colour = np.median(pixels[distance > 0.75 * peak], axis=0)
    direction = colour - background
    coverage = (pixels - background) @ direction / (direction @ direction)
    return coverage.clip(0, 1), colour


@lru_cache(maxsize=len(SHAPES))
def _ideal(shape: str) -> tuple[float, float, float]:
    """A shape's area and centroid (x, y) for radius 1, in units of the radius."""
    mask = np.asarray(shape_mask(shape, width=256, radius=0.4), dtype=np.float64) / 255
    grid = (np.arange(256) + 0.5) / 256 - 0.5
    x, y = (mask.sum(0) * grid).sum() / mask.sum(), (mask.sum(1) * grid).sum() / mask.sum()
    return float(mask.mean() / 0.4**2), float(x / 0.4), float(y / 0.4)


def shape_overlap(coverage: np.ndarray, shape: str) -> float:
    """Best intersection over union of a figure with an ideal shape of its own area and centroid.

    Args:
        coverage: ``(64, 64)`` in 0..1.
        shape: One of ``SHAPES``.
    """
    size = coverage.shape[0]
    grid = (np.arange(size) + 0.5) / size
    total = coverage.sum()
    centre_x, centre_y = (
        (coverage.sum(0) * grid).sum() / total,
        (coverage.sum(1) * grid).sum() / total,
    )
    area, offset_x, offset_y = _ideal(shape)
    fitting = float(np.sqrt(coverage.mean() / area))
    best = 0.0
    for stretch in (0.94, 1.0, 1.06):
        radius = fitting * stretch
        centre = (centre_x - offset_x * radius, centre_y - offset_y * radius)
        ideal = (
            np.asarray(
                shape_mask(shape, width=size, radius=radius, centre=centre), dtype=np.float32
            )
            / 255
        )
        best = max(
            best, float(np.minimum(coverage, ideal).sum() / np.maximum(coverage, ideal).sum())
        )
    return best


def judge(image: Image.Image) -> Verdict:
    """Name what a picture of the captioned world shows."""
    pixels = _pixels(image)
    background = border_colour(pixels)
    found = _coverage(pixels, background)
    if found is None:
        return Verdict(UNKNOWN, UNKNOWN, nearest_colour(background), 0.0)
    coverage, colour = found
    # Stray faint pixels far from the figure would pull its centre away.
    coverage = np.where(coverage < 0.25, 0.0, coverage)
    overlaps = {shape: shape_overlap(coverage, shape) for shape in SHAPES}
    best = max(overlaps, key=lambda shape: overlaps[shape])
    shape = best if overlaps[best] >= SMALLEST_OVERLAP else UNKNOWN
    return Verdict(nearest_colour(colour), shape, nearest_colour(background), overlaps[best])


@dataclass(frozen=True, slots=True)
class _Figure:
    """A figure cut out of its background: what ``creature_score`` compares.

    Attributes:
        mask: ``(32, 32)`` in 0..1.
        colours: ``(32, 32, 3)`` in 0..1, zero where there is no figure.
        palette: Share of each of 64 coarse colours, summing to 1.
    """

    mask: np.ndarray
    colours: np.ndarray
    palette: np.ndarray

    def mirrored(self) -> _Figure:
        return _Figure(self.mask[:, ::-1], self.colours[:, ::-1], self.palette)


def _soft_palette(pixels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A histogram of 4x4x4 colours in which neighbours share a pixel, so that tints do not jump."""
    place = pixels.reshape(-1, 3) / 255 * 3
    low = np.minimum(place.astype(int), 2)
    part = place - low
    palette = np.zeros((4, 4, 4))
    for corner in np.ndindex(2, 2, 2):
        share = np.prod(np.where(corner, part, 1 - part), axis=1) * weights.ravel()
        np.add.at(palette, tuple((low + np.array(corner)).T), share)
    return palette.ravel() / max(palette.sum(), 1e-9)


def _cut_out(image: Image.Image) -> _Figure | None:
    """Cut the figure out by its distance from the border's colour, into a 32-pixel square."""
    pixels = _pixels(image)
    distance = np.linalg.norm(pixels - border_colour(pixels), axis=2)
    mask = ((distance - 25) / 40).clip(0, 1)
    rows, columns = np.flatnonzero(mask.sum(1) > 1.5), np.flatnonzero(mask.sum(0) > 1.5)
    if len(rows) < 3 or len(columns) < 3:
        return None
    half = max(rows[-1] - rows[0], columns[-1] - columns[0]) / 2 + 1.5
    x, y = (columns[0] + columns[-1] + 1) / 2, (rows[0] + rows[-1] + 1) / 2
    box = (x - half, y - half, x + half, y + half)

    def crop(values: np.ndarray) -> np.ndarray:
        padded = np.pad(values, RESOLUTION // 2).astype(np.float32)
        shifted = tuple(edge + RESOLUTION // 2 for edge in box)
        picture = Image.fromarray(padded).resize(
            (_CUTOUT, _CUTOUT), Image.Resampling.BILINEAR, box=shifted
        )
        return np.asarray(picture)

    colours = np.stack([crop(pixels[:, :, channel] * mask / 255) for channel in range(3)], axis=2)
    return _Figure(crop(mask), colours, _soft_palette(pixels, mask))


def _likeness(first: _Figure, second: _Figure) -> float:
    """Alikeness of two cut-out figures: outline, colours in their places, colours anywhere."""
    outline = float(
        np.minimum(first.mask, second.mask).sum() / np.maximum(first.mask, second.mask).sum()
    )
    shared = np.minimum(first.mask, second.mask)
    difference = np.linalg.norm(first.colours - second.colours, axis=2)
    places = float(
        (np.exp(-4 * difference) * shared).sum() / np.maximum(first.mask, second.mask).sum()
    )
    palette = float(np.minimum(first.palette, second.palette).sum())
    return 0.3 * outline + 0.35 * places + 0.35 * palette


def creature_score(
    image: Image.Image, references: Sequence[Image.Image], best_of: int = 3
) -> float:
    """How much the figure of a picture looks like the figures of the references.

    Place, size, direction (left or right) and background do not count. The
    references may show one figure in several poses, or different figures (glyphs,
    say): only the best few matches count.

    Args:
        image: The picture to rate.
        references: Pictures of what it should look like.
        best_of: How many of the best matches are averaged; 1 where the references
            show different figures, such as the letters of a script.

    Returns:
        0 (no figure at all) to 1 (the very same figure); see ``SAME_CREATURE``.

    Raises:
        ValueError: If there is no reference.
    """
    if not references:
        raise ValueError("creature_score needs at least one reference picture")
    figure = _cut_out(image)
    if figure is None:
        return 0.0
    mirrored = figure.mirrored()
    scores = []
    for reference in references:
        other = _cut_out(reference)
        if other is not None:
            scores.append(max(_likeness(figure, other), _likeness(mirrored, other)))
    best = sorted(scores, reverse=True)[:best_of]
    return float(np.mean(best)) if best else 0.0

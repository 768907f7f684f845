"""The wide world: uncaptioned pictures that teach the VAE more than named shapes.

Blobs with eyes, strokes that look like glyphs of no known script, polygons,
curves, gradients and patterns. Neither a font nor a creature of ``creatures`` is
ever drawn here: those are held out to measure what the VAE does with the unknown.
The same figures, on plain named backgrounds, stand beside made-up words when the
UNet is trained.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from models_app.starter.world import COLOURS, RESOLUTION, SHAPES, SUPERSAMPLING, shape_mask

Colour = tuple[int, int, int]
_SIDE = RESOLUTION * SUPERSAMPLING


def random_colour(rng: np.random.Generator, *unlike: Colour) -> Colour:
    """A colour that can be told from all of ``unlike``; a quarter are named ones."""
    named = list(COLOURS.values())
    for _ in range(20):
        if rng.random() < 0.25:
            colour = named[rng.integers(len(named))]
        else:
            red, green, blue = (int(value) for value in rng.integers(0, 256, 3))
            colour = (red, green, blue)
        if all(
            sum((a - b) ** 2 for a, b in zip(colour, other, strict=True)) > 70**2
            for other in unlike
        ):
            return colour
    return colour


def _blob_points(
    rng: np.random.Generator, x: float, y: float, rx: float, ry: float
) -> list[tuple[float, float]]:
    """A closed smooth outline: an ellipse with a few low waves on it."""
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    wave = np.ones_like(t)
    for k in range(2, 6):
        wave += rng.normal(0, 0.22 / k) * np.cos(k * t + rng.uniform(0, 2 * np.pi))
    return list(zip(x + rx * wave * np.cos(t), y + ry * wave * np.sin(t), strict=True))


def _curve(
    rng: np.random.Generator, start: np.ndarray, end: np.ndarray, bend: float
) -> list[tuple[float, float]]:
    """A quadratic curve between two points that bulges sideways by about ``bend``."""
    middle = (start + end) / 2 + rng.normal(0, bend, 2)
    t = np.linspace(0, 1, 14)[:, None]
    points = (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end
    return [(float(px), float(py)) for px, py in points]


def _stroke(
    draw: ImageDraw.ImageDraw, points: list[tuple[float, float]], width: float, colour: Colour
) -> None:
    """A line with round joints and ends."""
    draw.line(points, fill=colour, width=max(1, round(width)), joint="curve")
    half = width / 2
    for px, py in (points[0], points[-1]):
        draw.ellipse((px - half, py - half, px + half, py + half), fill=colour)


def _eye(draw: ImageDraw.ImageDraw, rng: np.random.Generator, x: float, y: float, r: float) -> None:
    white = (255, 255, 255) if rng.random() < 0.7 else random_colour(rng)
    pupil = (10, 10, 20) if rng.random() < 0.7 else random_colour(rng, white)
    draw.ellipse((x - r, y - r, x + r, y + r), fill=white)
    p = r * rng.uniform(0.35, 0.7)
    px, py = x + rng.uniform(-1, 1) * (r - p) * 0.8, y + rng.uniform(-1, 1) * (r - p) * 0.8
    draw.ellipse((px - p, py - p, px + p, py + p), fill=pupil)


def draw_being(
    image: Image.Image, rng: np.random.Generator, x: float, y: float, r: float, background: Colour
) -> None:
    """A body with some of: limbs, feelers, horns, eyes, a belly, stripes, spots, a mouth."""
    draw = ImageDraw.Draw(image)
    body = random_colour(rng, background)
    second = random_colour(rng, body, background)
    rx, ry = r * rng.uniform(0.55, 0.95), r * rng.uniform(0.55, 0.95)
    for _ in range(int(rng.integers(0, 7))):
        angle = rng.uniform(0, 2 * np.pi)
        start = np.array([x + 0.7 * rx * np.cos(angle), y + 0.7 * ry * np.sin(angle)])
        reach = rng.uniform(1.2, 1.6)
        end = np.array([x + reach * rx * np.cos(angle), y + reach * ry * np.sin(angle)])
        width = r * rng.uniform(0.05, 0.25)
        colour = (body, second)[int(rng.integers(2))]
        if rng.random() < 0.35:
            side = np.array([-(end - start)[1], (end - start)[0]]) * rng.uniform(0.2, 0.5)
            draw.polygon([tuple(start + side), tuple(start - side), tuple(end)], fill=colour)
        else:
            _stroke(draw, _curve(rng, start, end, 0.2 * r), width, colour)
            if rng.random() < 0.4:
                ex, ey, er = end[0], end[1], width * rng.uniform(0.7, 1.4)
                draw.ellipse(
                    (ex - er, ey - er, ex + er, ey + er), fill=random_colour(rng, background)
                )
    outline = _blob_points(rng, x, y, rx, ry)
    draw.polygon(outline, fill=body)
    _decorate(image, rng, outline, (x, y, rx, ry), second)
    for _ in range(int(rng.integers(0, 4))):
        ex, ey = x + rng.uniform(-0.5, 0.5) * rx, y + rng.uniform(-0.6, 0.2) * ry
        _eye(draw, rng, ex, ey, r * rng.uniform(0.1, 0.32))
    if rng.random() < 0.5:
        width = rng.uniform(0.2, 0.6) * rx
        box = (x - width, y + 0.1 * ry, x + width, y + rng.uniform(0.4, 0.7) * ry)
        draw.arc(box, 10, 170, fill=random_colour(rng, body), width=max(2, round(0.08 * r)))


def _decorate(
    image: Image.Image,
    rng: np.random.Generator,
    outline: list[tuple[float, float]],
    ellipse: tuple[float, float, float, float],
    colour: Colour,
) -> None:
    """A belly, stripes or spots that end at the body's outline."""
    x, y, rx, ry = ellipse
    kind = int(rng.integers(0, 5))
    layer = Image.new("L", image.size, 0)
    draw = ImageDraw.Draw(layer)
    if kind == 0:
        draw.ellipse((x - 0.55 * rx, y - 0.1 * ry, x + 0.55 * rx, y + 0.8 * ry), fill=255)
    elif kind == 1:
        gap = rng.uniform(0.25, 0.6) * ry
        for top in np.arange(y - 1.4 * ry, y + 1.4 * ry, gap):
            draw.rectangle((x - 2 * rx, top, x + 2 * rx, top + gap * 0.45), fill=255)
    elif kind == 2:
        for _ in range(int(rng.integers(3, 9))):
            sx, sy = x + rng.uniform(-1, 1) * rx, y + rng.uniform(-1, 1) * ry
            s = rng.uniform(0.06, 0.2) * rx
            draw.ellipse((sx - s, sy - s, sx + s, sy + s), fill=255)
    else:
        return
    inside = Image.new("L", image.size, 0)
    ImageDraw.Draw(inside).polygon(outline, fill=255)
    image.paste(
        colour, (0, 0, *image.size), Image.composite(layer, Image.new("L", image.size, 0), inside)
    )


def draw_sign(
    image: Image.Image, rng: np.random.Generator, x: float, y: float, r: float, background: Colour
) -> None:
    """A few strokes of one width between the points of a small grid, like a letter of no script."""
    draw = ImageDraw.Draw(image)
    colour = random_colour(rng, background)
    width = r * rng.uniform(0.14, 0.42)
    columns = (-0.62, 0.0, 0.62) if rng.random() < 0.7 else (-0.5, 0.5)
    grid = [np.array([x + c * r, y + s * r]) for c in columns for s in (-0.9, -0.3, 0.3, 0.9)]
    for _ in range(int(rng.integers(1, 5))):
        first, last = rng.choice(len(grid), 2, replace=False)
        start, end = grid[first], grid[last]
        choice = rng.random()
        if choice < 0.45:
            if rng.random() < 0.6:
                end = (
                    np.array([start[0], end[1]])
                    if rng.random() < 0.5
                    else np.array([end[0], start[1]])
                )
            _stroke(draw, [tuple(start), tuple(end)], width, colour)
        elif choice < 0.7:
            _stroke(draw, _curve(rng, start, end, 0.6 * r), width, colour)
        else:
            left, right = sorted((start[0], end[0]))
            top, bottom = sorted((start[1], end[1]))
            right, bottom = max(right, left + 0.7 * r), max(bottom, top + 0.7 * r)
            begin = int(rng.choice([0, 90, 180, 270]))
            sweep = int(rng.choice([90, 180, 180, 270, 360]))
            draw.arc(
                (left, top, right, bottom),
                begin,
                begin + sweep,
                fill=colour,
                width=max(2, round(width)),
            )
    if rng.random() < 0.2:
        dx, dy, dot = x + rng.uniform(-0.6, 0.6) * r, y - 1.15 * r, width * 0.7
        draw.ellipse((dx - dot, dy - dot, dx + dot, dy + dot), fill=colour)


def draw_polygon(
    image: Image.Image, rng: np.random.Generator, x: float, y: float, r: float, background: Colour
) -> None:
    """One to three random polygons on top of each other."""
    draw = ImageDraw.Draw(image)
    for layer in range(int(rng.integers(1, 4))):
        corners = int(rng.integers(3, 9))
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        radii = r * rng.uniform(0.4, 1.0, corners) * 0.8**layer
        points = list(zip(x + radii * np.cos(angles), y + radii * np.sin(angles), strict=True))
        draw.polygon(points, fill=random_colour(rng, background))


def draw_shape(
    image: Image.Image, rng: np.random.Generator, x: float, y: float, r: float, background: Colour
) -> None:
    """A shape of the captioned world in any colour, turned by any angle."""
    mask = shape_mask(SHAPES[rng.integers(len(SHAPES))], width=RESOLUTION, radius=0.4).resize(
        (round(2.5 * r), round(2.5 * r)), Image.Resampling.BILINEAR
    )
    mask = mask.rotate(rng.uniform(0, 360), Image.Resampling.BILINEAR)
    image.paste(random_colour(rng, background), (round(x - 1.25 * r), round(y - 1.25 * r)), mask)


def draw_curves(
    image: Image.Image, rng: np.random.Generator, x: float, y: float, r: float, background: Colour
) -> None:
    """A handful of free strokes of different widths and colours."""
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(2, 7))):
        start, end = (np.array([x, y]) + rng.uniform(-1, 1, 2) * r for _ in range(2))
        _stroke(
            draw,
            _curve(rng, start, end, r),
            r * rng.uniform(0.04, 0.25),
            random_colour(rng, background),
        )


Painter = Callable[[Image.Image, np.random.Generator, float, float, float, Colour], None]
_FIGURES: tuple[Painter, ...] = (draw_being, draw_sign, draw_polygon, draw_shape, draw_curves)
_FIGURE_SHARES = (0.36, 0.34, 0.08, 0.12, 0.10)
# Beside made-up words: things with a form of their own, as a name would promise.
_NAMED_FIGURES: tuple[Painter, ...] = (draw_being, draw_sign, draw_polygon)
_NAMED_SHARES = (0.6, 0.3, 0.1)


def _draw_background(rng: np.random.Generator) -> tuple[Image.Image, Colour]:
    """Mostly a plain colour; else a gradient, a glow, clouds, stripes or squares."""
    first = random_colour(rng)
    kind = rng.random()
    if kind < 0.68:
        return Image.new("RGB", (_SIDE, _SIDE), first), first
    second = random_colour(rng)
    if kind < 0.8:
        mask = Image.linear_gradient("L").rotate(int(rng.choice([0, 90, 180, 270])))
    elif kind < 0.86:
        mask = Image.radial_gradient("L")
    elif kind < 0.93:
        noise = rng.integers(0, 256, (5, 5)).astype(np.uint8)
        mask = Image.fromarray(noise)
    else:
        cells = int(rng.integers(2, 9))
        pattern = (
            np.indices((cells, cells)).sum(0) % 2
            if rng.random() < 0.5
            else np.indices((cells, cells))[0] % 2
        )
        mask = Image.fromarray((pattern * 255).astype(np.uint8)).resize(
            (_SIDE, _SIDE), Image.Resampling.NEAREST
        )
    mask = mask.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    return Image.composite(
        Image.new("RGB", mask.size, first), Image.new("RGB", mask.size, second), mask
    ), first


def _reduce(image: Image.Image) -> Image.Image:
    return image.resize((RESOLUTION, RESOLUTION), Image.Resampling.BOX)


def draw_wide_picture(rng: np.random.Generator) -> Image.Image:
    """One picture of the wide world: one large figure, or several small ones."""
    image, background = _draw_background(rng)
    count = 1 if rng.random() < 0.62 else int(rng.integers(2, 7))
    for _ in range(count):
        painter = _FIGURES[rng.choice(len(_FIGURES), p=_FIGURE_SHARES)]
        if count == 1:
            r, spread = rng.uniform(0.2, 0.45), 0.1
        else:
            r, spread = rng.uniform(0.08, 0.25), 0.35
        x, y = 0.5 + rng.uniform(-spread, spread, 2)
        painter(image, rng, x * _SIDE, y * _SIDE, r * _SIDE, background)
    if rng.random() < 0.08:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(2, 8)))
    return _reduce(image)


def draw_unnamed_figure(background: str, rng: np.random.Generator) -> Image.Image:
    """One figure without a name, centred on a plain named background."""
    colour = COLOURS[background]
    image = Image.new("RGB", (_SIDE, _SIDE), colour)
    painter = _NAMED_FIGURES[rng.choice(len(_NAMED_FIGURES), p=_NAMED_SHARES)]
    x, y = 0.5 + rng.uniform(-0.06, 0.06, 2)
    painter(image, rng, x * _SIDE, y * _SIDE, rng.uniform(0.2, 0.34) * _SIDE, colour)
    return _reduce(image)

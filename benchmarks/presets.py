"""Whether each preset teaches the starter a subject, with 10, 20 and 50 pictures.

    python -m benchmarks.presets                          # all nine cells
    python -m benchmarks.presets character-10 style-50    # some of them

A cell is a LoRA training with nothing but the preset given, on one thread. What plain diffusers
paints with its file is held against the lines of ``models_app.starter.lines``: pictures that were
kept back are more like the subject than what was trained, and that more than the base; the trained
subject is more like its own pictures than like another's; at least 70 % of 20 seeds put it on a
colour that its pictures do not have; prompts without it lose at most 10 points. Each cell prints a
row of a table.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.training_methods import load, train
from models_app.starter.creatures import draw_creature
from models_app.starter.lines import (
    ABSENT,
    KNOWN,
    LEAST_ABSENT,
    MOST_FORGOTTEN,
    TAUGHT,
    likeness,
    share_on,
    share_right,
)
from models_app.starter.score import generate
from training_app.trainer.presets import PRESETS

NUMBERS = (10, 20, 50)
CELLS = [f"{preset}-{number}" for number, preset in itertools.product(NUMBERS, PRESETS)]
NOTHING_ELSE: dict[str, Any] = {"trigger_word": None, "sample_every_steps": None}
HEAD = (
    "| preset | pictures | steps | minutes | kept back > trained > base | own > other | "
    "on cyan | known before, base → trained | passes |\n|" + " --- |" * 9
)


@dataclass(frozen=True)
class Painted:
    """What a model paints for the prompts of the lines."""

    red: list[Image.Image]
    blue: list[Image.Image]
    absent: list[Image.Image]
    known: float

    @classmethod
    def by(cls, pipeline: Any) -> Painted:
        """Paint with a pipeline; the seeds are always the same."""

        def zorps(background: str, number: int, seed: int) -> list[Image.Image]:
            return generate(pipeline, [f"a zorp on a {background} background"] * number, seed)

        captions = [scene.caption for scene in KNOWN for _ in range(2)]
        known = generate(pipeline, captions, 7)
        right = {scene: known[2 * n : 2 * n + 2] for n, scene in enumerate(KNOWN)}
        return cls(
            zorps("red", 8, 1), zorps("blue", 8, 50), zorps(ABSENT, 20, 101), share_right(right)
        )


@cache
def base() -> Painted:
    """What the starter paints untrained."""
    return Painted.by(_silent(load(None)))


def _silent(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _draw(kind: str, number: int, seed: int) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [draw_creature(kind, TAUGHT[n % len(TAUGHT)], rng) for n in range(number)]


def measure(preset: str, number: int) -> str:
    """Train a cell and return its row."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        asked = NOTHING_ELSE | {"preset": preset}
        listener, steps = train("lora", asked, Path(place), number)
        minutes = (time.monotonic() - began) / 60
        trained = Painted.by(_silent(load(listener.outputs)))
    own, other = _draw("A", number, 11), _draw("B", 16, 11)
    kept_back, red, untaught = (
        likeness(pictures, own) for pictures in (_draw("A", 8, 12), trained.red, base().red)
    )
    mine, foreign = likeness(trained.blue, own), likeness(trained.blue, other)
    absent = share_on(ABSENT, trained.absent, base().absent[:4], own)
    passes = [
        kept_back > red > untaught,
        mine > foreign,
        absent >= LEAST_ABSENT,
        trained.known >= base().known - MOST_FORGOTTEN,
    ]
    cells = [
        preset,
        str(number),
        str(steps),
        f"{minutes:.1f}",
        f"{kept_back:.3f} > {red:.3f} > {untaught:.3f}",
        f"{mine:.3f} > {foreign:.3f}",
        f"{absent:.0%}",
        f"{base().known:.2f} → {trained.known:.2f}",
        "yes" if all(passes) else f"no: {[int(each) for each in passes]}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure the cells that are named."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("cells", nargs="*", default=CELLS, help=", ".join(CELLS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(HEAD, flush=True)
    for cell in given.cells:
        preset, _, number = cell.rpartition("-")
        print(measure(preset, int(number)), flush=True)


if __name__ == "__main__":
    main()

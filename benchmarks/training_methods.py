"""Whether each method teaches the starter a creature, and what becomes of its class.

    python -m benchmarks.training_methods                       # every case
    python -m benchmarks.training_methods lora dreambooth       # some of them

Each case is a whole run of the trainer with the preset's settings, on one thread: 16 drawings of a
creature that the starter has never seen. The files that it leaves are loaded into plain diffusers
and judged by ``models_app.starter.judge``, which uses no model: how much the trained prompt's
pictures look like the creature, and whether the class's prompt still paints circles (DreamBooth
calls the creature "a zorp circle", so the class is "a circle").
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from PIL import Image

from benchmarks import Silent
from benchmarks.full_size import STARTER_FOLDER
from models_app.loading import load_pipeline
from models_app.starter.creatures import draw_creature
from models_app.starter.judge import creature_score, judge
from training_app.trainer.config import resolve_config
from training_app.trainer.run import run

COLOURS = ("red", "blue", "white", "yellow", "purple")
DEFAULTS = {"width": 64, "num_inference_steps": 20, "guidance_scale": 5.0}
PICTURES = 16
PAINTED = 96
CONCEPT, CLASS = "a zorp on a red background", "a circle"
DREAMBOOTH = {"instance_prompt": "a zorp circle", "class_prompt": CLASS}
#: Method and what is asked for beside the preset, by the name of the case.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {}),
    "dreambooth": ("dreambooth", DREAMBOOTH),
    "dreambooth, no class": ("dreambooth", DREAMBOOTH | {"prior_loss_weight": 0}),
    "dreambooth, unet": ("dreambooth", DREAMBOOTH | {"tune": "unet"}),
    "dreambooth, unet, no class": (
        "dreambooth",
        DREAMBOOTH | {"tune": "unet", "prior_loss_weight": 0},
    ),
    "full": ("full", {}),
}


class _Listener(Silent):
    """A channel that keeps losses and the end of a run."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.outputs: dict[str, Any] = {}

    def send(self, message_type: str, /, **fields: Any) -> None:
        """Keep what is of use."""
        if message_type == "step":
            self.losses += [entry[1] for entry in fields["history"]]
        elif message_type == "done":
            self.outputs = fields["outputs"]


def draw_pictures(folder: Path, with_captions: bool, pictures: int) -> list[dict[str, Any]]:
    """Draws the creature and returns the manifest's entries."""
    folder.mkdir()
    rng, entries = np.random.default_rng(11), []
    for number in range(pictures):
        colour = COLOURS[number % len(COLOURS)]
        picture = draw_creature("A", colour, rng)
        picture.save(folder / f"{number}.png")
        entries.append(
            {
                "id": number,
                "path": str(folder / f"{number}.png"),
                "caption": f"a zorp on a {colour} background" if with_captions else "",
                "pixel_sha256": hashlib.sha256(picture.tobytes()).hexdigest(),
                "width": picture.width,
                "height": picture.height,
            }
        )
    return entries


def train(
    method: str, asked: dict[str, Any], folder: Path, pictures: int = PICTURES
) -> tuple[_Listener, int]:
    """Does one run; the number of its steps comes along."""
    images = draw_pictures(folder / "pictures", method != "dreambooth", pictures)
    config = resolve_config(
        {"trigger_word": "zorp", "sample_every_steps": 0} | asked,
        architecture="sd1",
        method=method,
        base_defaults=DEFAULTS,
        num_images=pictures,
    )
    listener = _Listener()
    request = {
        "job_id": "measurement",
        "base_folder": str(STARTER_FOLDER),
        "architecture": "sd1",
        "method": method,
        "config": config.as_dict(),
        "images": images,
        "output_folder": str(folder / "output"),
        "cache_folder": str(folder / "cache"),
        "threads": 1,
        "checkpoint_seconds": 1e9,
    }
    run(listener, request)
    return listener, config.max_train_steps


def load(outputs: dict[str, Any] | None) -> Any:
    """What a run has left as a plain pipeline; without one, the base."""
    is_folder = outputs is not None and outputs["layout"] == "folder"
    folder = Path(outputs["weights"]) if outputs and is_folder else STARTER_FOLDER
    pipeline = load_pipeline(folder, "sd1")
    if outputs is not None and not is_folder:
        path = Path(outputs["weights"])
        pipeline.load_lora_weights(path.parent, weight_name=path.name, local_files_only=True)
    return pipeline


def paint(pipeline: Any, prompt: str, first_seed: int) -> list[Image.Image]:
    """Paints pictures of a prompt, each with a seed of its own."""
    generators = [torch.Generator().manual_seed(first_seed + n) for n in range(PAINTED)]
    pictures: list[Image.Image] = pipeline(
        [prompt] * PAINTED,
        num_inference_steps=DEFAULTS["num_inference_steps"],
        guidance_scale=DEFAULTS["guidance_scale"],
        generator=generators,
    ).images
    return pictures


def score(pipeline: Any, concept: str) -> dict[str, float]:
    """How much the concept looks like the creature, and what the class looks like."""
    rng = np.random.default_rng(11)
    references = [draw_creature("A", COLOURS[n % len(COLOURS)], rng) for n in range(PICTURES)]

    def likeness(pictures: list[Image.Image]) -> float:
        return float(np.mean([creature_score(picture, references) for picture in pictures]))

    shown, others = paint(pipeline, concept, 1), paint(pipeline, CLASS, 501)
    return {
        "concept": likeness(shown),
        "class": likeness(others),
        "circles": float(np.mean([judge(picture).shape == "circle" for picture in others])),
    }


def measure(name: str) -> dict[str, Any]:
    """Trains a case, and judges what it left beside the base."""
    method, asked = CASES[name]
    concept = asked.get("instance_prompt", CONCEPT)
    with tempfile.TemporaryDirectory() as place:
        wall, cpu = time.monotonic(), time.process_time()
        listener, steps = train(method, asked, Path(place))
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
        edge = max(1, steps // 10)
        ends = listener.losses[:edge], listener.losses[-edge:]
        return {
            "case": name,
            "steps": steps,
            "seconds": round(wall),
            "cpu_seconds": round(cpu),
            "loss": [round(float(np.mean(end)), 4) for end in ends],
            "base": score(load(None), concept),
            "trained": score(load(listener.outputs), concept),
        }


def main() -> None:
    """Measures the cases that are named, and prints a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("cases", nargs="*", default=list(CASES), help=", ".join(CASES))
    parser.add_argument("--config", type=json.loads, default={}, help="settings as JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.cases:
        CASES[name] = (CASES[name][0], CASES[name][1] | given.config)
        print(json.dumps(measure(name)), flush=True)


if __name__ == "__main__":
    main()

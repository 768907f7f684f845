"""The engine against a plain diffusers pipeline on the same weights, side by side in one run.

    python -m benchmarks.generation                                   # the starter on this CPU
    python -m benchmarks.generation --base sdxl --device cuda:0 --steps 30 --rounds 5

Measured are a cold start, warm pictures (a new prompt, a repeated one), eight pictures at once,
the cost of a LoRA switch, many LoRAs in turn, and memory over 1,000 switches. What is compared
takes turns, so that what else the machine does hits both; medians are compared. The whole site is
measured by ``benchmarks.generation_site``.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import psutil
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks import Silent
from benchmarks.full_size import NATIVE_SIZE, STARTER_FOLDER, make_full_size
from generation_app.engine.adapters import LoraFile
from generation_app.engine.pipelines import compute_dtype
from generation_app.engine.resident import Engine
from generation_app.engine.schedulers import build_scheduler
from models_app.inspection import sha256_of
from models_app.loading import load_pipeline
from tests.generation_app.engine.conftest import make_lora

SCHEDULER = "ddim"
GUIDANCE = 5.0


class Bench:
    """One base model, the engine and plain diffusers on it."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.steps, self.device, self.rounds = options.steps, options.device, options.rounds
        starter = options.base == "starter"
        self.architecture = "sd1" if starter else options.base
        self.size = 64 if starter else NATIVE_SIZE[options.base]
        self.base = STARTER_FOLDER if starter else make_full_size(folder / "base", options.base)
        self.folder = folder
        self.rng = random.Random(5)
        self._prompts = 0

    # --- the two sides ------------------------------------------------------------------------
    def message(
        self, prompt: str, loras: list[LoraFile] | None = None, images: int = 1
    ) -> dict[str, Any]:
        """A request as the worker sends it."""
        return {
            "job_id": "0000",
            "mode": "text-to-image",
            "base_folder": str(self.base),
            "base_sha256": "b" * 64,
            "architecture": self.architecture,
            "model_name": "Base",
            "prompt": prompt,
            "negative_prompt": "",
            "width": self.size,
            "height": self.size,
            "num_inference_steps": self.steps,
            "guidance_scale": GUIDANCE,
            "scheduler": SCHEDULER,
            "clip_skip": 0,
            "seeds": [self.rng.randrange(2**31) for _ in range(images)],
            "output_folder": str(self.folder / "out"),
            "device": self.device,
            "threads": torch.get_num_threads(),
            "preview": False,
            "memory_bytes": 0,
            "together": 8,
            "metadata": {},
            "loras": [
                {"path": str(x.path), "sha256": x.sha256, "weight": x.weight, "name": x.name}
                for x in loras or []
            ],
        }

    def plain(self) -> Any:
        """A plain pipeline, from disk."""
        dtype = compute_dtype(self.device)
        pipe = load_pipeline(self.base, self.architecture, dtype=dtype, device=self.device)
        pipe.scheduler = build_scheduler(SCHEDULER, pipe.scheduler.config, self.steps)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def paint_plain(self, pipe: Any, prompt: str, images: int = 1) -> None:
        """Paint and save, as a script would."""
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in range(images)]
        made = pipe(
            prompt,
            width=self.size,
            height=self.size,
            num_inference_steps=self.steps,
            guidance_scale=GUIDANCE,
            num_images_per_prompt=images,
            generator=generators,
        ).images
        for number, image in enumerate(made):
            image.save(self.folder / f"plain-{number}.png")

    def new_prompt(self) -> str:
        """A prompt that nobody has asked for yet."""
        self._prompts += 1
        return f"a large red star number {self._prompts} on a blue background"

    # --- measuring ----------------------------------------------------------------------------
    def seconds(self, work: Callable[[], Any]) -> float:
        """How long one piece of work takes, its device included."""
        started = time.perf_counter()
        work()
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def compare(self, ours: Callable[[], Any], plain: Callable[[], Any]) -> tuple[float, float]:
        """Median seconds of both, taken in turns."""
        pairs = [(self.seconds(ours), self.seconds(plain)) for _ in range(self.rounds)]
        mine, theirs = zip(*pairs, strict=True)
        return statistics.median(mine), statistics.median(theirs)


def make_loras(bench: Bench, number: int) -> list[LoraFile]:
    """Adapters of one shape and different weights."""
    first = make_lora(
        bench.base, bench.folder / "lora-0.safetensors", rank=16, alpha=8, kind=bench.architecture
    )
    with safe_open(first, "pt") as file:
        metadata = file.metadata()
    weights = load_file(first)
    generator = torch.Generator().manual_seed(0)
    found = []
    for index in range(number):
        path = bench.folder / f"lora-{index}.safetensors"
        if index:
            rolled = {
                name: torch.randn(value.shape, generator=generator) * 0.02 if value.dim() else value
                for name, value in weights.items()
            }
            save_file(rolled, path, metadata)
        found.append(LoraFile(path, sha256_of(path), 1.0, path.stem))
    return found


def row(name: str, ours: float, plain: float, unit: str = "ms") -> None:
    """Print one comparison."""
    scale = 1000 if unit == "ms" else 1
    print(
        f"| {name} | {ours * scale:.2f} {unit} | {plain * scale:.2f} {unit} | {ours / plain:.3f} |"
    )


def cold(bench: Bench) -> None:
    """From disk to the first picture."""

    def ours() -> None:
        Engine().run(Silent(), bench.message(bench.new_prompt()))

    def plain() -> None:
        bench.paint_plain(bench.plain(), bench.new_prompt())

    ours()
    plain()  # the files are in the system's cache for both
    row("cold: load and one picture", *bench.compare(ours, plain))
    gc.collect()


def warm(bench: Bench, engine: Engine, pipe: Any) -> None:
    """Pictures on a warm model."""

    def ours(prompt: str, images: int = 1) -> None:
        engine.run(Silent(), bench.message(prompt, images=images))

    for _ in range(3):
        ours("again")
        bench.paint_plain(pipe, "again")
    fresh = bench.new_prompt
    row(
        "warm, new prompt",
        *bench.compare(lambda: ours(fresh()), lambda: bench.paint_plain(pipe, fresh())),
    )
    row(
        "warm, same prompt",
        *bench.compare(lambda: ours("again"), lambda: bench.paint_plain(pipe, "again")),
    )
    row(
        "eight pictures of one request",
        *bench.compare(lambda: ours("again", 8), lambda: bench.paint_plain(pipe, "again", 8)),
    )


def switching(bench: Bench, engine: Engine, pipe: Any, loras: list[LoraFile]) -> None:
    """What it costs to paint with another LoRA than the last."""
    adapters = engine.pipelines.find("b" * 64, bench.device).adapters  # type: ignore[union-attr]
    order = [bench.rng.choice(loras[:16]) for _ in range(200)]
    for lora in loras[:16]:
        adapters.activate([lora])
    ours = [bench.seconds(lambda x=lora: adapters.activate([x])) for lora in order]

    def plain(lora: LoraFile) -> None:
        pipe.unload_lora_weights()
        pipe.load_lora_weights(lora.path.parent, weight_name=lora.path.name)

    theirs = [bench.seconds(lambda x=lora: plain(x)) for lora in order[: 4 * bench.rounds]]
    pipe.unload_lora_weights()
    row("switch to another of 16 LoRAs", statistics.median(ours), statistics.median(theirs))


def in_turn(bench: Bench, engine: Engine, loras: list[LoraFile]) -> None:
    """The rate with many LoRAs in random turn, to that with one."""

    def paint(lora: LoraFile) -> None:
        engine.run(Silent(), bench.message("again", [lora]))

    for lora in loras:
        paint(lora)
    for number in (16, len(loras)):
        turn = lambda n=number: paint(bench.rng.choice(loras[:n]))  # noqa: E731
        many, one = bench.compare(turn, lambda: paint(loras[0]))
        row(f"{number} LoRAs in random turn (ours), to one LoRA (ours)", many, one)


def memory(bench: Bench, engine: Engine, loras: list[LoraFile]) -> None:
    """Resident memory over 1,000 switches between all LoRAs, some of which must leave each time."""
    adapters = engine.pipelines.find("b" * 64, bench.device).adapters  # type: ignore[union-attr]
    adapters._max_adapters = 12
    process = psutil.Process()
    seen = []
    for number in range(1001):
        adapters.activate([bench.rng.choice(loras)])
        if number % 100 == 0:
            gc.collect()
            seen.append(process.memory_info().rss / 2**20)
    print("\nresident MiB at every 100th of 1,000 switches:", " ".join(f"{x:.0f}" for x in seen))
    print(f"(at most 12 of {len(loras)} attached: {adapters.loads} were read from disk)")


def main() -> None:
    """Measure everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", choices=("starter", *NATIVE_SIZE), default="starter")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="studio-generation-") as folder:
        bench = Bench(options, Path(folder))
        print(
            f"{options.base}, {bench.size} px, {options.steps} steps, {options.device}, "
            f"{options.threads} threads, torch {torch.__version__}, {platform.processor()}\n"
        )
        print("| | the engine | plain diffusers | ratio |\n| --- | --- | --- | --- |")
        cold(bench)
        engine, pipe = Engine(), bench.plain()
        warm(bench, engine, pipe)
        loras = make_loras(bench, 20)
        switching(bench, engine, pipe, loras)
        in_turn(bench, engine, loras)
        memory(bench, engine, loras)
    print(f"load {load:.1f} before, {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()

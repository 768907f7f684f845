"""This trainer against the loop of the common example scripts, side by side in one run.

    python -m benchmarks.training                          # the starter on this CPU
    python -m benchmarks.training --base sdxl --device cuda:0 --precision bf16 --batch 1

Same weights, pictures, precision and batch. Blocks of steps alternate, so that what else the
machine does hits both; the ratio of the medians is the result. Memory is each one's own peak,
taken in processes of their own.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
STARTED_AT = time.monotonic()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from benchmarks import Silent  # noqa: E402
from benchmarks.full_size import NATIVE_SIZE, STARTER_FOLDER, make_full_size  # noqa: E402
from benchmarks.plain_training import PlainTraining  # noqa: E402
from models_app.starter.creatures import draw_creature  # noqa: E402
from training_app.trainer.cache import cache_latents, cache_prompts  # noqa: E402
from training_app.trainer.compiling import settle_compiling  # noqa: E402
from training_app.trainer.config import resolve_config  # noqa: E402
from training_app.trainer.dataset import Example, make_examples  # noqa: E402
from training_app.trainer.learner import compute_dtype  # noqa: E402
from training_app.trainer.reporting import Reporter  # noqa: E402
from training_app.trainer.request import TrainingRequest  # noqa: E402
from training_app.trainer.training import Training  # noqa: E402

COLOURS = ("red", "blue", "white", "yellow", "purple")
PICTURES = 16


class Operators(TorchDispatchMode):
    """Counts what is launched on the device, and what waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.launched = self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operator and run it."""
        self.launched += 1
        self.waits += "_local_scalar_dense" in str(func)
        return func(*args, **(kwargs or {}))


def read_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--base", choices=("starter", "sd1", "sdxl"), default="starter")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--targets", default="attention")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6, help="steps of a block")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "full-size")
    parser.add_argument("--compiled", action="store_true", help="ours compiled as a third side")
    parser.add_argument("--only", choices=("ours", "plain"), help="one side alone, for its memory")
    return parser.parse_args()


def make_request(arguments: argparse.Namespace, folder: Path) -> TrainingRequest:
    """A run on drawn pictures of the base's own size."""
    architecture = "sd1" if arguments.base == "starter" else arguments.base
    base = STARTER_FOLDER
    size = 64
    if arguments.base != "starter":
        base, size = make_full_size(arguments.folder / architecture, architecture), 0
        size = NATIVE_SIZE[architecture]
    rng = np.random.default_rng(1)
    images = []
    for number in range(PICTURES):
        colour = COLOURS[number % len(COLOURS)]
        picture = draw_creature("A", colour, rng).resize((size, size))
        path = folder / f"{number}.png"
        picture.save(path)
        digest = hashlib.sha256(picture.tobytes()).hexdigest()
        caption = f"a zorp on a {colour} background"
        images.append({"id": number, "path": str(path), "caption": caption, "width": size,
                       "height": size, "pixel_sha256": digest})  # fmt: skip
    config = resolve_config(
        {
            "train_batch_size": arguments.batch,
            "targets": arguments.targets,
            "mixed_precision": arguments.precision,
            "rank": 16,
            "trigger_word": "zorp",
        },
        architecture=architecture,
        method="lora",
        base_defaults={"width": size},
        num_images=PICTURES,
    )
    return TrainingRequest.from_dict(
        {
            "job_id": "benchmark",
            "method": "lora",
            "base_folder": str(base),
            "architecture": architecture,
            "config": config.as_dict(),
            "images": images,
            "output_folder": str(folder / "output"),
            "cache_folder": str(folder / "cache"),
            "device": arguments.device,
            "threads": arguments.threads,
        }
    )


def make_ours(request: TrainingRequest, examples: list[Example]) -> Training:
    """Our training, its caches filled."""
    reporter = Reporter(Silent())
    latents = cache_latents(examples, request, reporter)
    dtype = compute_dtype(request.config, request.device)
    prompts = cache_prompts([e.prompt for e in examples], request, dtype, reporter)
    return Training(request, examples, latents, prompts)


def make_compiled(request: TrainingRequest, examples: list[Example]) -> Training:
    """Our training, compiled."""
    config = replace(request.config, torch_compile="on")
    training = make_ours(replace(request, config=config), examples)
    started_at = time.monotonic()
    if not settle_compiling(training, Reporter(Silent())):
        raise SystemExit("the network cannot be compiled here")
    print(f"  compiled in {time.monotonic() - started_at:.0f} s")
    return training


def finish(device: str) -> None:
    """Waits for the device."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def seconds_of(step: Callable[[], object], steps: int, device: str) -> float:
    """Time of one step, over a block of them."""
    finish(device)
    started_at = time.perf_counter()
    for _ in range(steps):
        step()
    finish(device)
    return (time.perf_counter() - started_at) / steps


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product: what this device reaches at best."""
    side = 8192 if device.startswith("cuda") else 1024
    a = torch.randn(side, side, device=device, dtype=dtype)
    best = min(seconds_of(lambda: a @ a, 5, device) for _ in range(5))
    return 2 * side**3 / best


def peak_bytes(device: str) -> int:
    """The most memory that this process held."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure_memory(arguments: argparse.Namespace, request: TrainingRequest) -> None:
    """One side alone, a few steps; prints its peak."""
    examples = make_examples(request.images, request.config)
    dtype = compute_dtype(request.config, request.device)
    if arguments.only == "ours":
        step: Callable[[], object] = make_ours(request, examples).do_step
    else:
        step = PlainTraining(request, examples, dtype).do_step
    for _ in range(3):
        step()
    finish(request.device)
    print(peak_bytes(request.device))


def memory_of(side: str) -> int:
    """The peak of one side, in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.training", *sys.argv[1:]]
    done = subprocess.run([*command, "--only", side], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def compare(arguments: argparse.Namespace, request: TrainingRequest) -> None:
    """Both sides in turn; prints the table."""
    device, config = request.device, request.config
    dtype = compute_dtype(config, device)
    examples = make_examples(request.images, config)
    make_ours(request, examples).do_step()  # fills the caches
    cold = time.monotonic()
    ours = make_ours(request, examples)
    ours.do_step()
    finish(device)
    to_first_step = time.monotonic() - cold
    plain = PlainTraining(request, examples, dtype)
    plain.do_step()

    counted = {}
    steps: dict[str, Callable[[], object]] = {"ours": ours.do_step, "plain": plain.do_step}
    for name, step in steps.items():
        with Operators() as operators:
            step()
        counted[name] = operators
    with FlopCounterMode(display=False) as flops:
        ours.do_step()
    floor = flops.get_total_flops() / matrix_rate(device, dtype)

    memory = {side: memory_of(side) for side in counted}
    if arguments.compiled:
        steps["compiled"] = make_compiled(request, examples).do_step
    times: dict[str, list[float]] = {side: [] for side in steps}
    for _ in range(arguments.blocks):
        for side, step in steps.items():
            times[side].append(seconds_of(step, arguments.steps, device))

    where = torch.cuda.get_device_name(device) if device.startswith("cuda") else _cpu_name()
    print(f"{arguments.base}, batch {arguments.batch}, {dtype}, {arguments.targets}, on {where}, "
          f"{torch.get_num_threads()} thread(s), torch {torch.__version__}")  # fmt: skip
    for side in counted:
        seconds = statistics.median(times[side])
        print(
            f"  {side:5}  {1 / seconds:7.2f} steps/s  {arguments.batch / seconds:7.2f} images/s  "
            f"{counted[side].launched:6} operators  {counted[side].waits:3} waits  "
            f"peak {memory[side] / 2**20:6.0f} MiB  {floor / seconds:5.0%} of the floor"
        )
    ratio = statistics.median(times["plain"]) / statistics.median(times["ours"])
    operators = counted["ours"].launched / counted["plain"].launched
    print(f"  ours/plain: {ratio:.2f}x images/s, {operators:.2f}x operators, "
          f"{memory['ours'] / memory['plain']:.2f}x memory")  # fmt: skip
    if arguments.compiled:
        seconds, plain_seconds = (statistics.median(times[x]) for x in ("compiled", "plain"))
        print(f"  compiled/plain: {plain_seconds / seconds:.2f}x images/s")
    print(f"  warm caches to first step: {to_first_step:.2f} s "
          f"(+ {STARTED_AT_TO_IMPORTED:.1f} s for imports)")  # fmt: skip


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


STARTED_AT_TO_IMPORTED = time.monotonic() - STARTED_AT


def main() -> None:
    """Runs what the command line asks for."""
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        request = make_request(arguments, Path(folder))
        (measure_memory if arguments.only else compare)(arguments, request)


if __name__ == "__main__":
    main()

"""Ten users with ten prompts on one model: denoised in batches against one at a time.

A worker with a real engine serves the same requests twice a round, once as they are and once with
`run_alone`, from the request to the last row; rounds alternate which comes first. Beside the wall
clock it counts the seconds that the engine computed, which other work on the machine does not
stretch, and tells what company changed in the pictures. The model is the starter, warm; 64 px, 20
steps, previews as on any site.

    .venv/bin/python -m benchmarks.joint_batches
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from io import BytesIO

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")

import django

django.setup()

import numpy as np  # noqa: E402
import psutil  # noqa: E402
from django.core.management import call_command  # noqa: E402
from PIL import Image  # noqa: E402

from generation_app import actors, services  # noqa: E402
from generation_app.models import GenerationJob  # noqa: E402
from models_app.models import DiffusionModel  # noqa: E402
from models_app.starter.export import WEIGHTS_FOLDER  # noqa: E402
from studio_project import device_share, supervision  # noqa: E402
from studio_project.models import User  # noqa: E402
from tests.factories import content_of, make_base_of, make_worker  # noqa: E402

SHAPES, COLOURS = ("circle", "square", "star", "heart", "ring"), ("red", "blue")
PROMPTS = [f"a large {colour} {shape}" for colour in COLOURS for shape in SHAPES]


def serve(users: list[User], base: DiffusionModel, *, run_alone: bool) -> list[GenerationJob]:
    """Queue one request of each user and do them all."""
    shape = {"width": 64, "height": 64, "num_inference_steps": 20, "run_alone": run_alone}
    jobs = [
        services.submit_generation(
            user,
            mode="text-to-image",
            body={"model": base.pk, "prompt": prompt, "seed": number, **shape},
        )
        for number, (user, prompt) in enumerate(zip(users, PROMPTS, strict=True))
    ]
    actors.generate()
    for job in jobs:
        job.refresh_from_db()
        if job.status != "completed":
            raise RuntimeError(f"{job.status} {job.error_code}\n{job.log_tail}")
    return jobs


def computed() -> float:
    """Return how many seconds the engine has computed."""
    child = actors._engine._child
    if child is None:
        return 0.0
    times = psutil.Process(child.pid).cpu_times()
    return float(times.user + times.system)


def pixels(job: GenerationJob) -> np.ndarray:
    """Return the picture of a job as numbers."""
    picture = Image.open(BytesIO(content_of(job.images.get().key))).convert("RGB")
    return np.asarray(picture, dtype=np.int16)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    call_command("migrate", verbosity=0)
    call_command("createcachetable")
    users = [User.objects.create_user(f"user{number}") for number in range(len(PROMPTS))]
    base = make_base_of(WEIGHTS_FOLDER)
    supervision.serve_as(make_worker())
    device_share.CPU_NICE = 0
    per_second: dict[bool, list[float]] = {True: [], False: []}
    per_computed: dict[bool, list[float]] = {True: [], False: []}
    differences, sizes = [], set()
    try:
        for run_alone in (False, True):  # warm, prompts read
            serve(users, base, run_alone=run_alone)
        for number in range(options.rounds):
            made = {}
            for run_alone in (True, False) if number % 2 else (False, True):
                started, before = time.perf_counter(), computed()
                made[run_alone] = serve(users, base, run_alone=run_alone)
                per_second[run_alone].append(len(users) / (time.perf_counter() - started))
                per_computed[run_alone].append(len(users) / (computed() - before))
            sizes |= {job.metrics["company"] for job in made[False]}
            pairs = zip(made[False], made[True], strict=True)
            differences += [np.abs(pixels(one) - pixels(other)) for one, other in pairs]
    finally:
        actors.stop_engine()
    print(f"in batches of {sorted(sizes)} pictures")
    for what, told in (("second", per_second), ("second computed", per_computed)):
        alone, joint = (statistics.median(told[name]) for name in (True, False))
        print(f"images a {what}: {alone:.2f} one at a time, {joint:.2f}, ratio {joint / alone:.2f}")
    worst, mean = max(d.max() for d in differences), max(d.mean() for d in differences)
    print(f"largest difference {worst}/255 in a value, {mean:.4f}/255 in the mean of a picture")
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()

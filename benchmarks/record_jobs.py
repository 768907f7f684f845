"""Records how long requests take on a running site: the rows on which forecasts are tested.

It starts a site on the CPU with the starter model, with no regard to what else the machine does.
By default it asks for pictures of mixed sizes, steps, counts and samplers, one after the other.
With `--rounds` it asks, so many times, for two of one shape one after the other and for ten at
once, while a longer request keeps the worker busy; what the site foretells for each of the ten is
compared with when it was done.

    .venv/bin/python -m benchmarks.record_jobs tests/generation_app/recorded_jobs.json
    .venv/bin/python -m benchmarks.record_jobs tests/generation_app/recorded_rounds.json --rounds 8
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from studio_project.management.demo_client import DemoClient
from tests.e2e import work
from tests.e2e.site import Site

TOGETHER, ALONE = 10, 2
TELL = """
import json
from generation_app.models import GenerationJob
kept = ("width", "height", "num_inference_steps", "num_images", "guidance_scale", "scheduler")
rows = GenerationJob.objects.filter(status="completed").order_by("created_at")
print("ROWS" + json.dumps([
    {
        "prompt": job.parameters["prompt"],
        "mode": job.mode,
        "parameters": {name: job.parameters[name] for name in kept},
        "metrics": {
            k: v for k, v in job.metrics.items() if k.endswith("seconds") or k == "company"
        },
        "wall_seconds": round((job.finished_at - job.started_at).total_seconds(), 3),
        "started_at": job.started_at.timestamp(),
        "finished_at": job.finished_at.timestamp(),
    }
    for job in rows
]))
"""


def main() -> None:
    """Record and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--jobs", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=0, help="rounds of ten requests at once")
    options = parser.parse_args()
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="studio-record-") as folder:
        site = Site(Path(folder))
        site.start()
        try:
            if options.rounds:
                ask_together(site, options.rounds)
            else:
                ask_mixed(site, options.jobs)
            told = site.manage("shell", "-v", "0", "-c", TELL)
        finally:
            site.stop()
    rows = in_rounds(json.loads(told.partition("ROWS")[2]))
    options.out.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    print(f"{len(rows)} jobs, load {os.getloadavg()[0]:.1f}")


def ask_mixed(site: Site, count: int) -> None:
    """Ask for pictures of mixed shapes, one after the other."""
    rng, client = random.Random(4), site.user()
    for number in range(count):
        width, height = rng.choice((64, 96, 128)), rng.choice((64, 96, 128))
        work.generate(
            client,
            work.starter(client),
            f"picture {number}",
            width=width,
            height=height,
            num_inference_steps=rng.choice((4, 8, 12, 20)),
            num_images=rng.choice((1, 1, 2)),
            scheduler=rng.choice(("ddim", "euler_a", "dpmpp_2m", "heun")),
        )


def ask_together(site: Site, rounds: int) -> None:
    """Ask for ten pictures at once, again and again, and tell how wrong the site foretold."""
    users = [site.user() for _ in range(TOGETHER)]
    model = work.starter(users[0])
    shape = {"width": 64, "height": 64, "num_inference_steps": 20, "scheduler": "dpmpp_2m"}
    for number in range(rounds):
        for user in users[:ALONE]:
            work.generate(user, model, "alone", **shape)
        busy = {**shape, "num_inference_steps": 60, "run_alone": True}
        send(users[0], model, f"busy {number}", busy)
        jobs = [send(user, model, f"round {number}", shape) for user in users]
        asked = time.time()
        told = [
            user.call("GET", f"/api/generate/{job}")["eta_seconds"]
            for user, job in zip(users, jobs, strict=True)
        ]
        rows = [
            work.finished(user, f"/api/generate/{job}")
            for user, job in zip(users, jobs, strict=True)
        ]
        ended = [time_of(row["finished_at"]) - asked for row in rows]
        errors = [abs(eta - real) / real for eta, real in zip(told, ended, strict=True) if eta]
        print(f"round {number}: foretold {told}, done in {[round(x, 1) for x in ended]}, "
              f"median error {statistics.median(errors):.2f}")  # fmt: skip


def send(client: DemoClient, model: int, prompt: str, shape: dict[str, Any]) -> str:
    """Ask for a picture without waiting for it; return the job."""
    body = {"model": model, "prompt": prompt, "seed": 1, **shape}
    return str(client.call("POST", "/api/generate/text-to-image", body)["id"])


def time_of(text: str) -> float:
    """Return a moment of the API in seconds."""
    return datetime.fromisoformat(text).timestamp()


def in_rounds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Replace moments by how long after its round began each request was done."""
    begun: dict[str, float] = {}
    for row in rows:
        begun[row["prompt"]] = min(begun.get(row["prompt"], row["started_at"]), row["started_at"])
    kept = []
    for row in rows:
        prompt, _started, ended = (row.pop(x) for x in ("prompt", "started_at", "finished_at"))
        if prompt.startswith("round"):
            row |= {"round": int(prompt.split()[1]), "done_in": round(ended - begun[prompt], 3)}
        if not prompt.startswith("busy"):
            kept.append(row)
    return kept


if __name__ == "__main__":
    main()

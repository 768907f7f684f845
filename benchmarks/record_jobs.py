"""Records how long mixed requests take on a running site: the rows on which forecasts are tested.

It starts a site on the CPU with the starter model and asks for pictures of mixed sizes, steps,
counts and samplers, one after the other, with no regard to what else the machine does.

    .venv/bin/python -m benchmarks.record_jobs tests/generation_app/recorded_jobs.json --jobs 64
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from pathlib import Path

from tests.e2e import work
from tests.e2e.site import Site

TELL = """
import json
from generation_app.models import GenerationJob
kept = ("width", "height", "num_inference_steps", "num_images", "guidance_scale", "scheduler")
rows = GenerationJob.objects.filter(status="completed").order_by("created_at")
print("ROWS" + json.dumps([
    {
        "mode": job.mode,
        "parameters": {name: job.parameters[name] for name in kept},
        "metrics": {k: v for k, v in job.metrics.items() if k.endswith("seconds")},
        "wall_seconds": round((job.finished_at - job.started_at).total_seconds(), 3),
    }
    for job in rows
]))
"""


def main() -> None:
    """Record and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--jobs", type=int, default=64)
    options = parser.parse_args()
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]
    rng = random.Random(4)
    with tempfile.TemporaryDirectory(prefix="studio-record-") as folder:
        site = Site(Path(folder))
        site.start()
        try:
            client = site.user()
            for number in range(options.jobs):
                width, height = rng.choice((64, 96, 128)), rng.choice((64, 96, 128))
                work.generate(
                    client,
                    work.starter(client),
                    f"picture {number}",
                    width=width,
                    height=height,
                    num_inference_steps=rng.choice((4, 8, 12)),
                    num_images=rng.choice((1, 1, 1, 2, 3)),
                    scheduler=rng.choice(("ddim", "euler_a", "dpmpp_2m", "heun")),
                )
            told = site.manage("shell", "-v", "0", "-c", TELL)
        finally:
            site.stop()
    rows = json.loads(told.partition("ROWS")[2])
    options.out.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    print(f"{len(rows)} jobs, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()

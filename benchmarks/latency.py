"""How long a person waits for the machinery and not for the picture.

Measured are the way from the request to the engine's first step, and from the finished file to the
event in the browser. A site of its own on the CPU, with the starter model, is warmed, 1,000
trainings that nobody can run are put into the queue, and single pictures are asked for with pauses
between them, so that every request meets an idle worker. The prompt is new each time.

    .venv/bin/python -m benchmarks.latency --requests 60 --repeat 3

Times are wall-clock times of one machine: the request leaves the client, the worker hears that the
first step begins, the engine's file is closed, the socket's frame arrives.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed

from studio_project.management.demo_client import FINAL, DemoClient
from tests.e2e.site import Site

WAITING = """
import uuid
from django.utils import timezone
from studio_project.models import User
from training_app.models import TrainingJob
users = [User.objects.create(username=f"waiter-{i}") for i in range(20)]
now = timezone.now()
TrainingJob.objects.bulk_create([
    TrainingJob(owner=users[i % 20], dataset_name="d", base_model_name="b", title=f"t{i}",
                status="queued", queued_at=now, required_bytes=2**60)
    for i in range({number})
])
"""
TELL = """
import json
from generation_app.models import GenerationJob
rows = GenerationJob.objects.filter(status="completed").order_by("created_at")
print("ROWS" + json.dumps([
    [str(job.pk), job.metrics["first_step_at"], job.images.get().created_at.timestamp(),
     job.started_at.timestamp(), job.queued_at.timestamp()] for job in rows
]))
"""
USUAL = {
    "STUDIO_HEARTBEAT_SECONDS": "10",
    "STUDIO_LEASE_SECONDS": "45",
    "STUDIO_SWEEP_SECONDS": "10",
    "STUDIO_SIGNUP": "open",
}


@dataclass
class Heard:
    """When what was heard on the socket."""

    image_at: dict[str, float] = field(default_factory=dict)
    final_at: dict[str, float] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def hear(self, event: dict[str, Any], now: float) -> None:
        """Note the first event with a picture, and the last of a job."""
        if event.get("type") != "generation_job.changed":
            return
        with self.changed:
            if event.get("images"):
                self.image_at.setdefault(event["id"], now)
            if event["status"] in FINAL:
                self.final_at[event["id"]] = now
            self.changed.notify_all()


def listen(client: DemoClient, heard: Heard, ready: threading.Event) -> None:
    """Read the socket until the site ends."""
    with contextlib.suppress(ConnectionClosed), client.events() as socket:
        ready.set()
        for frame in socket:
            heard.hear(json.loads(frame), time.time())


def paint(client: DemoClient, heard: Heard, number: int) -> tuple[str, float, float]:
    """Ask for one picture and wait for its end; return its id, and when it was asked and taken."""
    body = {
        "model": "starter-64",
        "prompt": f"a large red star number {number} on a blue background",
        "num_inference_steps": 4,
        "seed": number,
    }
    asked_at = time.time()
    job = client.call("POST", "/api/generate/text-to-image", body)["id"]
    answered_at = time.time()
    with heard.changed:
        ended = heard.changed.wait_for(lambda: job in heard.final_at, timeout=60)
    if not ended:
        raise SystemExit(f"job {job} did not end within a minute")
    return job, asked_at, answered_at


def measure(site: Site, *, requests: int, waiting: int, seed: int) -> dict[str, list[float]]:
    """Return milliseconds by stage, one value for each request."""
    rng = random.Random(seed)
    client, heard, ready = site.user(), Heard(), threading.Event()
    threading.Thread(target=listen, args=(client, heard, ready), daemon=True).start()
    ready.wait(30)
    for number in range(3):
        paint(client, heard, number)
    if waiting:
        site.manage("shell", "-v", "0", "-c", WAITING.replace("{number}", str(waiting)))
    asked = {}
    for number in range(requests):
        time.sleep(rng.uniform(0.3, 1.3))
        job, asked_at, answered_at = paint(client, heard, 100 + number)
        asked[job] = (asked_at, answered_at)
    told = site.manage("shell", "-v", "0", "-c", TELL)
    rows = json.loads(told.partition("ROWS")[2])
    stages: dict[str, list[float]] = {}
    for job, first_step_at, file_at, started_at, queued_at in rows:
        if job not in asked:
            continue
        asked_at, answered_at = asked[job]
        for stage, seconds in (
            ("POST to the first step", first_step_at - asked_at),
            ("  POST to the row", queued_at - asked_at),
            ("  row to the claim", started_at - queued_at),
            ("  claim to the first step", first_step_at - started_at),
            ("POST to its answer", answered_at - asked_at),
            ("file to the event", heard.image_at[job] - file_at),
        ):
            stages.setdefault(stage, []).append(1000 * seconds)
    return stages


def main() -> None:
    """Measure some rounds and print each as a table, with the machine's load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--waiting", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]
    for round_number in range(options.repeat):
        with tempfile.TemporaryDirectory(prefix="studio-latency-") as folder:
            site = Site(Path(folder), **USUAL)
            site.start()
            before = os.getloadavg()[0]
            try:
                stages = measure(
                    site, requests=options.requests, waiting=options.waiting, seed=round_number
                )
            finally:
                site.stop()
        after = os.getloadavg()[0]
        moment = datetime.now().astimezone().isoformat(timespec="minutes")
        print(
            f"\n{moment} · {options.requests} requests, {options.waiting} trainings wait · "
            f"{os.cpu_count()} cores, load {before:.2f} before, {after:.2f} after"
        )
        print(f"{'milliseconds':28}{'median':>9}{'p95':>9}")
        for stage, values in stages.items():
            p95 = statistics.quantiles(values, n=20)[-1]
            print(f"{stage:28}{statistics.median(values):9.1f}{p95:9.1f}")


if __name__ == "__main__":
    main()

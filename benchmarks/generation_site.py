"""The whole site at work: what it adds to a picture, ten users at once, and memory over 1,000 jobs.

A site of its own on the CPU with the starter, a second and a third tiny base, and 20 LoRAs.

    python -m benchmarks.generation_site --jobs 1000

Printed are, in one run: a warm picture through HTTP, queue, worker, engine, file and event, to the
same call of the engine alone; ten users who ask for one picture each at the same moment, to the ten
one after the other; and, over all jobs of ten users with three models and 20 LoRAs in random turn,
the engine's resident memory, whether a job was lost, and how evenly the users were served.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from benchmarks.full_size import STARTER_FOLDER
from studio_project.management.demo_client import FINAL, DemoClient
from tests.e2e import work
from tests.e2e.site import Site
from tests.generation_app.engine.conftest import make_lora
from tests.tiny import make_tiny_sd

USERS, LORAS = 10, 20
ADD = """
import json
from pathlib import Path
from models_app.layouts import describe_adapter
from models_app.models import DiffusionModel
from studio_project import storage
from studio_project.models import User
root = User.objects.get(username="root")
for index, (name, path) in enumerate(json.loads({files!r})):
    key = storage.new_key("models", "bench", suffix=".safetensors")
    storage.save(key, Path(path))
    entry = describe_adapter(Path(path))
    DiffusionModel.objects.register(
        name=f"lora-{{index:02}}", type="lora", owner=root, visibility="shared", path=key,
        base_model=DiffusionModel.objects.get(name=name), files=[entry],
        size_bytes=entry["size"], sha256=entry["sha256"],
    )
"""
TELL = """
import json
from generation_app.models import GenerationJob
rows = GenerationJob.objects.order_by("started_at").values_list(
    "pk", "owner__username", "status", "metrics", "queued_at", "started_at", "finished_at")
print("ROWS" + json.dumps([
    [str(pk), owner, status, metrics, *(moment.timestamp() if moment else 0 for moment in moments)]
    for pk, owner, status, metrics, *moments in rows
]))
"""


def ask(client: DemoClient, model: str, number: int, **fields: Any) -> str:
    """Ask for one picture; return the job's id."""
    body = {
        "model": model,
        "prompt": f"a large red star number {number} on a blue background",
        "width": 64,
        "height": 64,
        "num_inference_steps": 20,
        "scheduler": "ddim",
        "guidance_scale": 5.0,
        "seed": number,
        **fields,
    }
    return str(client.call("POST", "/api/generate/text-to-image", body)["id"])


def wait(client: DemoClient, job: str) -> None:
    """Wait until a job is final."""
    work.finished(client, f"/api/generate/{job}")


def add_models(site: Site, folder: Path) -> list[str]:
    """Add two tiny bases and the LoRAs; return the names of all models that paint."""
    bases = {"starter-64": STARTER_FOLDER}
    for index in (1, 2):
        bases[f"tiny-{index}"] = make_tiny_sd(folder / f"tiny-{index}", seed=index)
        site.manage("add_model", str(bases[f"tiny-{index}"]), "--name", f"tiny-{index}")
    files = []
    for index in range(LORAS):
        name = list(bases)[index % len(bases)]
        path = make_lora(bases[name], folder / f"lora-{index}.safetensors", rank=8, seed=index)
        files.append((name, str(path)))
    site.manage("shell", "-v", "0", "-c", ADD.format(files=json.dumps(files)))
    return [*bases, *(f"lora-{index:02}" for index in range(LORAS))]


def rows(site: Site) -> dict[str, list[Any]]:
    """What the site's database knows of each job."""
    told = site.manage("shell", "-v", "0", "-c", TELL)
    return {row[0]: row[1:] for row in json.loads(told.partition("ROWS")[2])}


def overhead(site: Site, client: DemoClient) -> None:
    """One user, one picture after the other."""
    took = {}
    for number in range(30):
        started = time.perf_counter()
        job = ask(client, "starter-64", number)
        while client.call("GET", f"/api/generate/{job}")["status"] not in FINAL:
            time.sleep(0.005)
        took[job] = time.perf_counter() - started
    known = rows(site)
    whole = statistics.median(list(took.values())[5:])
    bare = statistics.median([known[job][2]["seconds"] for job in list(took)[5:]])
    print(
        f"one picture: {whole * 1000:.0f} ms through the whole site, {bare * 1000:.0f} ms in the "
        f"engine, ratio {whole / bare:.2f}"
    )


def together(site: Site, clients: list[DemoClient]) -> None:
    """Ten users at the same moment, to the same ten one after the other; three rounds in turns."""
    at_once, alone = [], []
    with ThreadPoolExecutor(USERS) as pool:
        for round_number in range(3):
            numbers = [1000 * (round_number + 1) + index for index in range(USERS)]
            for index, client in enumerate(clients):
                job = ask(client, "starter-64", numbers[index] + 500)
                wait(client, job)
                alone.append(job)
            asked = list(pool.map(lambda c, n: ask(c, "starter-64", n), clients, numbers))
            for client, job in zip(clients, asked, strict=True):
                wait(client, job)
            at_once.append(asked)
    known = rows(site)
    spans = [
        max(known[job][5] for job in asked) - min(known[job][4] for job in asked)
        for asked in at_once
    ]
    one = statistics.median(known[job][5] - known[job][4] for job in alone)
    rate, single = USERS / statistics.median(spans), 1 / one
    print(
        f"ten users at once: {rate:.2f} images/s; one at a time {single:.2f}; "
        f"ratio {rate / single:.2f}"
    )


def endurance(site: Site, clients: list[DemoClient], models: list[str], number: int) -> None:
    """Many jobs of all users over all models, a hundred waiting at a time."""
    rng = random.Random(7)
    [engine] = site.processes("generation_app.engine")
    asked: list[tuple[DemoClient, str]] = []
    seen = []
    for index in range(number):
        client = clients[index % USERS]
        job = ask(client, rng.choice(models), index, num_inference_steps=4)
        asked.append((client, job))
        if index >= 100:
            wait(*asked[index - 100])
        if index % 100 == 0:
            seen.append(psutil.Process(engine.pid).memory_info().rss / 2**20)
    for client, job in asked[-100:]:
        wait(client, job)
    seen.append(psutil.Process(engine.pid).memory_info().rss / 2**20)
    known = rows(site)
    mine = [known[job] for _, job in asked]
    lost = sum(row[1] != "completed" for row in mine)
    waited: dict[str, list[float]] = {}
    for owner, _status, _metrics, queued_at, started_at, _finished_at in mine:
        waited.setdefault(owner, []).append(started_at - queued_at)
    waits = {owner: statistics.median(seconds) for owner, seconds in waited.items()}
    print(f"\n{number} jobs over {len(models)} models, {lost} not completed")
    print("the engine's resident MiB every 100 jobs:", " ".join(f"{x:.0f}" for x in seen))
    print(
        f"median wait by user: {min(waits.values()):.1f} to {max(waits.values()):.1f} s; "
        f"{sum(bool(row[2].get('load_seconds', 0) > 0.05) for row in mine)} jobs loaded something"
    )


def main() -> None:
    """Start a site, measure, stop it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    options = parser.parse_args()
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="studio-generation-") as name:
        folder = Path(name)
        site = Site(folder / "site")
        site.start()
        try:
            models = add_models(site, folder)
            clients = [site.user() for _ in range(USERS)]
            overhead(site, clients[0])
            together(site, clients)
            endurance(site, clients, models, options.jobs)
        finally:
            site.stop()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()

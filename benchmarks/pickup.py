"""How soon an idle worker hears a bell: Dramatiq's own consumer against ours, side by side.

Both listen to three queues of a Redis-compatible server started for the purpose; bells ring at
irregular moments. Stock is Dramatiq as it comes; polling is it with the shortest sensible pause.

    .venv/bin/python -m benchmarks.pickup
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")

import django

django.setup()

import dramatiq  # noqa: E402
import redis  # noqa: E402
from dramatiq.brokers.redis import RedisBroker  # noqa: E402

from studio_project import redis_server, worker_process  # noqa: E402
from studio_project.doorbell import BlockingRedisBroker  # noqa: E402
from studio_project.worker_process import Listener  # noqa: E402

BELLS = 80
QUEUES = {"training", "generation", "default"}


def measure(url: str, broker_class: type[RedisBroker], idle_ms: int) -> tuple[list[float], float]:
    """Return milliseconds from bell to actor, sorted, and the share of a core used meanwhile."""
    worker_process.IDLE_MS = idle_ms
    broker = broker_class(url=url, middleware=[], namespace=f"pickup-{idle_ms}")
    heard_at: list[float] = []
    heard = threading.Event()

    @dramatiq.actor(broker=broker, queue_name="generation")
    def ring() -> None:
        heard_at.append(time.perf_counter())
        heard.set()

    for queue in QUEUES:
        broker.declare_queue(queue)
    listener = Listener(broker, QUEUES)
    listener.listen(True)
    time.sleep(3)  # the pauses of a polling consumer grow to their longest
    rng = random.Random(1)
    waited, used, began = [], time.process_time(), time.monotonic()
    for _ in range(BELLS):
        time.sleep(rng.uniform(0.1, 0.4))
        heard.clear()
        rang_at = time.perf_counter()
        ring.send()
        heard.wait(5)
        waited.append(1000 * (heard_at[-1] - rang_at))
    share = (time.process_time() - used) / (time.monotonic() - began)
    listener.stop(5000)
    broker.close()
    return sorted(waited), share


def main() -> None:
    """Measure each way once and print a table."""
    with tempfile.TemporaryDirectory(prefix="studio-pickup-") as folder:
        server = redis_server.configure(Path(folder))
        process = subprocess.Popen(server.command, stdout=subprocess.DEVNULL)
        try:
            client = redis.Redis.from_url(server.url)
            while True:
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    time.sleep(0.05)
            print(
                f"load {os.getloadavg()[0]:.1f}\n{'':22}{'median ms':>10}{'p95 ms':>9}{'core':>7}"
            )
            for name, broker_class, idle_ms in (
                ("stock Dramatiq", RedisBroker, 1000),
                ("polling, 20 ms", RedisBroker, 20),
                ("blocking", BlockingRedisBroker, 20),
            ):
                waited, share = measure(server.url, broker_class, idle_ms)
                p95 = waited[int(0.95 * len(waited))]
                print(f"{name:22}{statistics.median(waited):10.1f}{p95:9.1f}{share:7.1%}")
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()

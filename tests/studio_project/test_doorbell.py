"""Idle consumers wait in Redis: they hear a bell at once and hardly ask meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import dramatiq
import pytest

from studio_project import doorbell
from studio_project.doorbell import BlockingRedisBroker
from studio_project.worker_process import Listener
from tests.studio_project.conftest import wait_until


@pytest.fixture
def broker(redis_url: str) -> Iterator[BlockingRedisBroker]:
    made = BlockingRedisBroker(url=redis_url, middleware=[], namespace="test-doorbell")
    made.flush_all()
    yield made
    made.close()


def actor(broker: BlockingRedisBroker, heard: threading.Semaphore) -> dramatiq.Actor:
    @dramatiq.actor(broker=broker, queue_name="training", actor_name="ring")
    def ring() -> None:
        heard.release()

    return ring


def test_every_bell_is_heard_and_an_idle_consumer_hardly_asks(
    broker: BlockingRedisBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    original = doorbell.BlockingConsumer._wait

    def wait(consumer: doorbell.BlockingConsumer) -> None:
        started = time.monotonic()
        original(consumer)
        waits.append(time.monotonic() - started)

    monkeypatch.setattr(doorbell.BlockingConsumer, "_wait", wait)
    heard = threading.Semaphore(0)
    ring = actor(broker, heard)
    listener = Listener(broker, {"training"})
    listener.listen(True)
    try:
        wait_until(lambda: len(waits) >= 2)
        assert min(waits) > doorbell.WAIT_SECONDS / 2  # nothing came, so it waited in Redis
        for _ in range(5):
            ring.send()
            assert heard.acquire(timeout=5)
        # Bells that ring while one is answered are not lost.
        for _ in range(5):
            ring.send()
        for _ in range(5):
            assert heard.acquire(timeout=5)
        wait_until(lambda: broker.do_qsize("training") == 0)
    finally:
        listener.stop(5000)


def test_two_listeners_share_the_bells(broker: BlockingRedisBroker, redis_url: str) -> None:
    heard = threading.Semaphore(0)
    ring = actor(broker, heard)
    other = BlockingRedisBroker(url=redis_url, middleware=[], namespace="test-doorbell")
    actor(other, heard)
    listeners = [Listener(broker, {"training"}), Listener(other, {"training"})]
    try:
        for listener in listeners:
            listener.listen(True)
        for _ in range(20):
            ring.send()
        for _ in range(20):
            assert heard.acquire(timeout=5)
        assert not heard.acquire(timeout=2 * doorbell.WAIT_SECONDS)  # each bell once
    finally:
        for listener in listeners:
            listener.stop(5000)
        other.close()

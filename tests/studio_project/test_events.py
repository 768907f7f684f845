"""What is told to open pages, when, and what happens when Redis is away."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import redis
from channels.layers import get_channel_layer
from django.db import transaction

from studio_project import events
from studio_project.event_schemas import EVENT_SCHEMAS, STATUSES
from studio_project.jobs import Job
from tests.studio_project.conftest import wait_until

Sent = list[tuple[list[str], dict[str, Any]]]
EVENT = {"type": "dataset.changed", "id": 7, "version": 3, "ts": "2026-11-23T06:00:00+00:00"}


@pytest.fixture
def redis_layer(redis_url: str, settings: Any) -> Iterator[None]:
    """Send through a real Redis."""
    settings.CHANNEL_LAYERS = {
        "default": {
            "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
            "CONFIG": {"hosts": [{"address": redis_url, "socket_timeout": None}]},
        }
    }
    yield
    asyncio.run_coroutine_threadsafe(_flush(), events._sender.loop()).result(10)


async def _flush() -> None:
    await get_channel_layer().flush()


def test_every_schema_is_one_and_names_its_type() -> None:
    for name, schema in EVENT_SCHEMAS.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["properties"]["type"] == {"const": name}
    assert set(STATUSES) == set(Job.Status)


def test_an_event_is_sent_to_each_user_once_after_the_commit(
    transactional_db: None, sent: Sent
) -> None:
    with transaction.atomic():
        events.publish(EVENT, users=[1, 2, 2])
        assert sent == []
    groups, message = sent[0]
    assert sorted(groups) == ["user.1", "user.2"]
    assert message == {"type": "event.message", "event": EVENT}


def test_a_shared_event_goes_to_everybody(transactional_db: None, sent: Sent) -> None:
    events.publish(EVENT, users=[1], shared=True)
    assert [groups for groups, _message in sent] == [["studio"]]


def test_who_loses_access_learns_nothing_else(transactional_db: None, sent: Sent) -> None:
    events.gone({**EVENT, "name": "Holidays", "num_items": 9}, users=[4])
    event = sent[0][1]["event"]
    assert event == {**EVENT, "gone": True}
    jsonschema.validate(event, EVENT_SCHEMAS["dataset.changed"])


def test_queue_counts_are_sent_at_most_once_a_second_and_the_last_always(
    sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "QUEUE_SECONDS", 0.3)
    began = time.monotonic()
    for number in range(50):
        events.publish_queue({"training": {"queued": number, "running": 0}})
    wait_until(lambda: len(sent) == 2)
    assert time.monotonic() - began >= 0.29
    assert [one[1]["event"]["queues"]["training"]["queued"] for one in sent] == [0, 49]
    jsonschema.validate(sent[1][1]["event"], EVENT_SCHEMAS["queue.changed"])


def test_events_of_a_thread_arrive_through_redis(redis_layer: None, transactional_db: None) -> None:
    async def hear() -> dict[str, Any]:
        layer = get_channel_layer()
        channel = await layer.new_channel()
        await layer.group_add("user.5", channel)
        publisher = threading.Thread(target=events.publish, args=(EVENT,), kwargs={"users": [5]})
        publisher.start()
        try:
            async with asyncio.timeout(10):
                return await layer.receive(channel)
        finally:
            publisher.join()
            await layer.flush()

    assert asyncio.run(hear())["event"] == EVENT


def test_a_dead_redis_is_nobodys_trouble(
    settings: Any, transactional_db: None, caplog: pytest.LogCaptureFixture
) -> None:
    settings.CHANNEL_LAYERS = {
        "default": {
            "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
            "CONFIG": {"hosts": ["redis://127.0.0.1:1/0"]},
        }
    }
    events._sender._complained_at = -1000.0
    began = time.monotonic()
    for _ in range(20):
        events.publish(EVENT, users=[1])
    assert time.monotonic() - began < 1
    wait_until(lambda: events._sender._in_flight == 0)
    complaints = [record for record in caplog.records if "an event was not sent" in record.message]
    assert len(complaints) == 1
    asyncio.run_coroutine_threadsafe(_flush(), events._sender.loop()).result(10)


def test_a_frozen_redis_fills_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    sender = events._Sender()
    release = threading.Event()

    class Frozen:
        async def group_send(self, group: str, message: dict[str, Any]) -> None:
            await asyncio.get_running_loop().run_in_executor(None, release.wait)

    monkeypatch.setattr(events, "get_channel_layer", Frozen)
    for _ in range(events.MAX_IN_FLIGHT + 200):
        sender.submit(["studio"], {"type": "event.message"})
    assert sender._in_flight == events.MAX_IN_FLIGHT
    release.set()
    wait_until(lambda: sender._in_flight == 0)
    sender.close()


def test_the_last_preview_is_kept_for_two_minutes(redis_url: str, settings: Any) -> None:
    settings.STUDIO_REDIS_URL = redis_url
    settings.DRAMATIQ_BROKER = {"BROKER": "dramatiq.brokers.redis.RedisBroker"}
    assert events.get_preview("a") is None
    events.put_preview("a", b"one")
    events.put_preview("a", b"two")
    assert events.get_preview("a") == b"two"
    client = redis.Redis.from_url(redis_url)
    assert 110 < client.ttl("studio:preview:a") <= 120
    client.close()
    events._client(redis_url).close()


def test_without_redis_there_is_no_preview_and_no_error(settings: Any) -> None:
    settings.STUDIO_REDIS_URL = "redis://127.0.0.1:1/0"
    settings.DRAMATIQ_BROKER = {"BROKER": "dramatiq.brokers.redis.RedisBroker"}
    events.put_preview("a", b"one")
    assert events.get_preview("a") is None


def test_previews_of_a_site_without_broker_lie_in_the_cache(db: None) -> None:
    events.put_preview("b", b"picture")
    assert events.get_preview("b") == b"picture"

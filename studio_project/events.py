"""Telling open pages that something changed.

This is the only module that touches the channel layer. An event is a hint: it carries a few scalars
and no contents, it is sent after the commit, and whoever publishes it neither waits for Redis nor
hears of its troubles. What an event may hold is written down in ``EVENT_SCHEMAS``.

Groups: ``user.<id>`` for what one person sees, ``studio`` for what everybody does.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import logging
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

import redis
from channels.layers import get_channel_layer
from django.conf import settings
from django.core.cache import cache
from django.db import transaction

from studio_project.event_schemas import EVENT_SCHEMAS

__all__ = [
    "EVENT_SCHEMAS",
    "PROTOCOL",
    "SHARED_GROUP",
    "end_sessions",
    "get_preview",
    "gone",
    "publish",
    "publish_queue",
    "put_preview",
    "user_group",
]

logger = logging.getLogger(__name__)

PROTOCOL = 1
SHARED_GROUP = "studio"
PREVIEW_SECONDS = 120
QUEUE_SECONDS = 1.0
SEND_SECONDS = 5.0
MAX_IN_FLIGHT = 500
COMPLAIN_SECONDS = 30.0

Event = dict[str, Any]


def user_group(user_id: int) -> str:
    """The group of one person's sockets."""
    return f"user.{user_id}"


def publish(event: Mapping[str, Any], *, users: Iterable[int] = (), shared: bool = False) -> None:
    """Sends an event to people's open pages once the transaction is committed.

    It never raises and never waits for Redis.

    Args:
        event: ``type``, ``id``, ``version``, ``ts`` and a few scalars.
        users: Ids of the users to tell.
        shared: Tell everybody who is signed in.
    """
    groups = [SHARED_GROUP] if shared else [user_group(user_id) for user_id in set(users)]
    message = {"type": "event.message", "event": dict(event)}
    transaction.on_commit(functools.partial(deliver, groups, message), robust=True)


def gone(event: Mapping[str, Any], *, users: Iterable[int] = (), shared: bool = False) -> None:
    """Tells those who could see an object that they cannot any more, and nothing else about it.

    Args:
        event: The object's event; all but its identity is left out.
        users: As for ``publish``.
        shared: As for ``publish``.
    """
    identity = {name: event[name] for name in ("type", "id", "version", "ts") if name in event}
    publish({**identity, "gone": True}, users=users, shared=shared)


def end_sessions(user_id: int) -> None:
    """Closes a user's sockets at once; those whose session still holds may come back."""
    message = {"type": "session.ended"}
    transaction.on_commit(functools.partial(deliver, [user_group(user_id)], message), robust=True)


def publish_queue(counts: Mapping[str, Mapping[str, int]]) -> None:
    """Tells everybody how many jobs wait and run; at most once a second, the last always."""
    _queue_bell.ring({"type": "queue.changed", "queues": {k: dict(v) for k, v in counts.items()}})


def deliver(groups: Iterable[str], message: Mapping[str, Any]) -> None:
    """Hands a message for some groups to the sending thread. Tests listen here."""
    _sender.submit(list(groups), dict(message))


class _Sender:
    """One asyncio thread for the life of the process.

    It is twice as fast as a loop per message and keeps one connection; it is made on first use, so
    a process that was forked makes its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._in_flight = 0
        self._complained_at = 0.0

    def loop(self) -> asyncio.AbstractEventLoop:
        """The running loop of the thread."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="events", daemon=True
                )
                self._thread.start()
            return self._loop

    def close(self) -> None:
        """Ends the thread; what was not sent yet is lost."""
        with self._lock:
            loop, self._loop = self._loop, None
            thread = self._thread
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def submit(self, groups: list[str], message: dict[str, Any]) -> None:
        """Sends without waiting; beyond a backlog that no page would want it drops."""
        if self._in_flight >= MAX_IN_FLIGHT:
            self._complain("Redis is slow; events are dropped")
            return
        self._in_flight += 1
        asyncio.run_coroutine_threadsafe(self._send(groups, message), self.loop())

    async def _send(self, groups: list[str], message: dict[str, Any]) -> None:
        try:
            layer = get_channel_layer()
            for group in groups:
                async with asyncio.timeout(SEND_SECONDS):
                    await layer.group_send(group, message)
        except Exception as error:
            self._complain(f"an event was not sent: {error!r}")
        finally:
            self._in_flight -= 1

    def _complain(self, text: str) -> None:
        now = time.monotonic()
        if now - self._complained_at > COMPLAIN_SECONDS:
            self._complained_at = now
            logger.warning(text)


class _QueueBell:
    """Lets one ``queue.changed`` through a second and keeps the last one for later."""

    def __init__(self, sender: _Sender) -> None:
        self._sender = sender
        self._lock = threading.Lock()
        self._last_sent = 0.0
        self._pending: Event | None = None

    def ring(self, event: Event) -> None:
        """Sends now, or at the end of the second in which one was sent already."""
        with self._lock:
            waits = self._pending is not None
            self._pending = event
            delay = self._last_sent + QUEUE_SECONDS - time.monotonic()
        if waits:
            return
        if delay <= 0:
            self._flush()
        else:
            loop = self._sender.loop()
            loop.call_soon_threadsafe(loop.call_later, delay, self._flush)

    def _flush(self) -> None:
        with self._lock:
            event, self._pending = self._pending, None
            self._last_sent = time.monotonic()
        if event is not None:
            deliver([SHARED_GROUP], {"type": "event.message", "event": event})


_sender = _Sender()
atexit.register(_sender.close)
_queue_bell = _QueueBell(_sender)


# --- previews -----------------------------------------------------------------------------------
def put_preview(job_id: UUID | str, picture: bytes) -> None:
    """Keeps the last preview of a job for two minutes. Without Redis there is none."""
    store = _redis()
    if store is None:
        cache.set(_preview_key(job_id), picture, PREVIEW_SECONDS)
        return
    try:
        store.set(_preview_key(job_id), picture, ex=PREVIEW_SECONDS)
    except redis.RedisError as error:
        logger.info("a preview was not kept: %s", error)


def get_preview(job_id: UUID | str) -> bytes | None:
    """The last preview of a job; the caller has checked who asks."""
    store = _redis()
    if store is None:
        return cache.get(_preview_key(job_id))
    try:
        picture = store.get(_preview_key(job_id))
    except redis.RedisError:
        return None
    return picture if isinstance(picture, bytes) else None


def _preview_key(job_id: UUID | str) -> str:
    return f"studio:preview:{job_id}"


@functools.cache
def _client(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2)


def _redis() -> redis.Redis | None:
    """The Redis of the site; ``None`` where the broker is not one (tests)."""
    if not str(settings.DRAMATIQ_BROKER["BROKER"]).endswith("RedisBroker"):
        return None
    return _client(settings.STUDIO_REDIS_URL)

"""What a child has said and nobody has read yet: its messages, and the end of its log.

Both are bounded: a child that floods its worker neither waits for it nor fills its memory.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

LOG_TAIL_BYTES = 32 * 1024
MAX_WAITING_MESSAGES = 5_000
MAX_HISTORY = 2_000
PROGRESS = frozenset({"step", "preview"})

Message = dict[str, Any]


class Mailbox:
    """The messages of a child in their order, except that progress is kept to the latest.

    Consecutive ``step`` messages become one, the newest, with all of them under ``history``; a
    picture or a checkpoint between two steps keeps its place.
    """

    def __init__(self) -> None:
        self._messages: deque[Message] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, message: Message) -> None:
        """Adds a message; waits only if the worker has long stopped reading."""
        with self._changed:
            if message["type"] in PROGRESS:
                self._put_progress(message)
            else:
                self._changed.wait_for(
                    lambda: len(self._messages) < MAX_WAITING_MESSAGES or self._closed
                )
                self._messages.append(message)
            self._changed.notify_all()

    def _put_progress(self, message: Message) -> None:
        kind = message["type"]
        if kind == "step":
            message = {**message, "history": [message]}
        for index in range(len(self._messages) - 1, -1, -1):
            waiting = self._messages[index]
            if waiting["type"] not in PROGRESS:
                break
            if waiting["type"] == kind:
                self._messages[index] = merge_steps(waiting, message) if kind == "step" else message
                return
        self._messages.append(message)

    def get(self, timeout: float | None = None) -> Message | None:
        """The next message; ``None`` if none came in time or none will come any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._messages or self._closed, timeout)
            if not self._messages:
                return None
            message = self._messages.popleft()
            self._changed.notify_all()
            return message

    def close(self) -> None:
        """No message will come any more; the waiting ones stay."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether no message will come any more."""
        return self._closed

    @property
    def finished(self) -> bool:
        """Whether the child's last message has been read."""
        with self._changed:
            return self._closed and not self._messages


def merge_steps(older: Message, newer: Message) -> Message:
    """The newer of two ``step`` messages, with the history of both."""
    return {**newer, "history": (older["history"] + newer["history"])[-MAX_HISTORY:]}


class LogTail:
    """The last lines of what a child wrote, bounded."""

    def __init__(self, limit: int = LOG_TAIL_BYTES) -> None:
        self._limit = limit
        self._data = bytearray()
        self._lock = threading.Lock()

    def add(self, chunk: bytes) -> None:
        """Adds some bytes and forgets the oldest beyond the limit."""
        with self._lock:
            self._data += chunk
            if len(self._data) > 2 * self._limit:
                del self._data[: -self._limit]

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._data.clear()

    def text(self) -> str:
        """The tail as whole lines, in which a progress bar shows its last state only."""
        with self._lock:
            cut = len(self._data) > self._limit
            data = bytes(self._data[-self._limit :])
        text = data.decode("utf-8", "replace").replace("\x00", "")
        lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
        return "\n".join(lines[1:] if cut and len(lines) > 1 else lines)

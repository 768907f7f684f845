"""What a run says while it runs, and how it learns that it shall stop.

The run talks to a :class:`Reporter`, which talks to the pipe; in tests it talks to a
list. It decides how often progress is told, not what is told.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Protocol

#: At most this many progress messages a second.
MESSAGES_PER_SECOND = 4

logger = logging.getLogger("trainer")


class Channel(Protocol):
    """The part of ``child_protocol.Channel`` that a run uses."""

    def send(self, message_type: str, /, **fields: Any) -> None:
        """Writes one message."""

    def stop_requested(self) -> str | None:
        """How the run shall stop, or ``None``."""


class StopRun(Exception):
    """Somebody wants this run to stop.

    Attributes:
        how: ``cancel``, ``pause``, ``keep`` or ``yield``.
        step: Optimizer steps done.
    """

    def __init__(self, how: str, step: int = 0) -> None:
        super().__init__(how)
        self.how = how
        self.step = step


class Reporter:
    """Tells the worker where the run is."""

    def __init__(self, channel: Channel) -> None:
        """Opens no line, takes one.

        Args:
            channel: Where messages go and wishes come from.
        """
        self._channel = channel
        self._told_at = 0.0
        self._phase = ""
        self._is_kept = False

    @property
    def is_due(self) -> bool:
        """Whether enough time has passed for another progress message."""
        return time.monotonic() - self._told_at >= 1 / MESSAGES_PER_SECOND

    def send(self, message_type: str, /, **fields: Any) -> None:
        """Sends a message now."""
        self._channel.send(message_type, **fields)

    def progress(self, message_type: str, /, **fields: Any) -> None:
        """Sends a message that counts as progress: :attr:`is_due` waits after it."""
        self._told_at = time.monotonic()
        self._channel.send(message_type, **fields)

    def phase(self, name: str, done: int = 0, total: int = 0) -> None:
        """Says what the run does now; of the counting within a phase only some is told."""
        if name != self._phase:
            self._phase = name
            logger.info("%s", name)
            self._channel.send("phase", phase=name, done=done, total=total)
        elif self.is_due:
            self.progress("phase", phase=name, done=done, total=total)

    def note(self, code: str, **params: Any) -> None:
        """Tells of something out of the ordinary that the run has coped with."""
        logger.warning("%s %s", code, params)
        self._channel.send("note", code=code, params=params)

    def stop_requested(self) -> str | None:
        """How the run shall stop, or ``None``."""
        how = self._channel.stop_requested()
        return None if how == "keep" and self._is_kept else how

    def keep(self) -> None:
        """The wish to keep what there is has been heard: the run ends by saving it."""
        self._is_kept = True

    def raise_if_stopped(self, step: int = 0) -> None:
        """Ends work that leaves nothing worth keeping.

        The wish to keep what there is never breaks off such work: it is obeyed between steps.

        Args:
            step: Optimizer steps done.

        Raises:
            StopRun: If the run shall stop.
        """
        how = self.stop_requested()
        if how and how != "keep":
            raise StopRun(how, step)

"""What a run says while it runs, and how it learns that it shall stop or stand aside.

The run talks to a :class:`Reporter`, which talks to the pipe; in tests it talks to a
list. It decides how often progress is told, not what is told.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Protocol

from training_app.trainer.luggage import Luggage, most_held_bytes

#: At most this many progress messages a second.
MESSAGES_PER_SECOND = 4

logger = logging.getLogger("trainer")


class Channel(Protocol):
    """The part of ``child_protocol.Channel`` that a run uses."""

    def send(self, message_type: str, /, **fields: Any) -> None:
        """Writes one message."""

    def stop_requested(self) -> str | None:
        """How the run shall stop, or ``None``."""

    def aside_wanted(self) -> bool:
        """Whether the run shall leave the device to others."""

    def wait_aside(self) -> str | None:
        """Waits until the device is the run's again, or returns how the run shall stop."""


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
    """Tells the worker where the run is, and hears what it wants of the run.

    Attributes:
        seconds_aside: How long the run has stood aside so far.
    """

    def __init__(self, channel: Channel, device: str = "cpu") -> None:
        """Opens no line, takes one.

        Args:
            channel: Where messages go and wishes come from.
            device: What the run leaves when it stands aside.
        """
        self._channel, self.device = channel, device
        self._left: str | None = None
        self._stays = False
        self._most_bytes = 0
        self.seconds_aside = 0.0
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

    def memory(self) -> None:
        """Says what the run holds of its device at most, whenever that has grown."""
        most = most_held_bytes(self.device)
        if most > self._most_bytes:
            self._most_bytes = most
            self.send("memory", held_bytes=most)

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
        how = self._left or self._channel.stop_requested()
        return None if how == "keep" and self._is_kept else how

    def keep(self) -> None:
        """The wish to keep what there is has been heard: the run ends by saving it."""
        self._is_kept = True

    @property
    def is_aside(self) -> bool:
        """Whether the run has left its device for good, because it shall stop."""
        return self._left is not None

    @property
    def is_in_the_way(self) -> bool:
        """Whether others shall have the device as soon as the run can leave it."""
        return self._channel.aside_wanted() and not self.is_aside and not self._stays

    def give_way(self) -> None:
        """Stands aside if that is wanted, until the device is the run's again.

        If the run is to stop meanwhile, what it has stays in RAM (see :attr:`is_aside`): a
        checkpoint can be written, and nothing be computed.
        """
        if not self.is_in_the_way:
            return
        began, phase = time.monotonic(), self._phase
        luggage = Luggage(self.device)
        try:
            held_bytes = luggage.take_away()
        except (RuntimeError, MemoryError):
            logger.exception("there is no RAM for what lies on the device")
            self._stays = True
            self.note("could_not_stand_aside")
            return
        self.send("aside", held_bytes=held_bytes)
        self._left = self._channel.wait_aside()
        if not self.is_aside:
            luggage.bring_back()
        seconds = time.monotonic() - began
        self.seconds_aside += seconds
        self.send("back", seconds=seconds)
        self._phase = ""  # the worker has shown another one meanwhile
        self.phase(phase)

    def raise_if_stopped(self, step: int = 0) -> None:
        """Ends work that leaves nothing worth keeping; before that, gives way to others.

        The wish to keep what there is never breaks off such work: it is obeyed between steps.

        Args:
            step: Optimizer steps done.

        Raises:
            StopRun: If the run shall stop.
        """
        self.give_way()
        how = self.stop_requested()
        if how and how != "keep":
            raise StopRun(how, step)

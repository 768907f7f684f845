"""How the training and the generation of one worker process share its device.

On a CPU both run, each with half of the threads and at low priority. On a GPU, or where a budget
of memory is set, a job is claimed only if it fits beside what the other kind is running; what the
other kind merely keeps warm is dropped when it would not fit. Where both do not fit they take
turns: a training stands aside while pictures are made, and comes back (``asides`` speaks to its
child). How a job computes, and which job comes next, is decided elsewhere.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

logger = logging.getLogger(__name__)

CPU_NICE = 10
# Where a device holds only one of them and both want it, a training keeps it for at least a turn,
# and pictures for at most two after the first of them. A picture waits for the training's turn, one
# step and the move of its memory: well below a minute, also behind half a minute of other pictures.
TURN_SECONDS = 15.0
PICTURE_TURNS = 2
# So long a training waits for a next picture: who got one often asks again.
LINGER_SECONDS = 2.0

JobT = TypeVar("JobT")


def devices_of(name: str) -> list[str]:
    """The devices of a group, whose name joins theirs by ``+``; a single one is a group of one."""
    return name.split("+")


@dataclass(frozen=True)
class DeviceShare:
    """What one kind of job may use of the worker's machine.

    Attributes:
        device: ``cpu``, ``mps``, ``cuda:0``; of several devices all names, joined by ``+``.
        threads: CPU threads of each of the job's processes, of which each device has one.
        nice: How much they give way to others.
    """

    device: str
    threads: int
    nice: int


@dataclass
class _Use:
    """What one kind uses of the device while a job of it runs.

    Attributes:
        full_bytes: What it needs to compute.
        held_bytes: What it holds while it stands aside; ``None`` while it does not.
        least_bytes: The least that it was seen to hold aside.
        since: When it began, came back, stood aside, or somebody for whom it did was first done,
            by the monotonic clock.
        has_served: Whether that was so: the first picture of a turn waits for its model as well.
    """

    full_bytes: int
    held_bytes: int | None = None
    least_bytes: int = 0
    since: float = 0.0
    has_served: bool = False


@dataclass(frozen=True)
class _Wish:
    """Jobs that wait for room: what the smallest of them needs, and since when they wait."""

    required_bytes: int
    since: float


class Device:
    """The one device of this process, or the group of them, and who uses how much of it.

    What a job needs it needs on each device that it uses, and every job uses the first one; so one
    account serves a whole group.

    Args:
        name: ``cpu``, ``mps``, ``cuda:0``, or a group such as ``cuda:0+cuda:1``.
        memory_bytes: The memory of each; 0 if unknown, and then nothing is ever refused for room.
        counts_memory: Whether room is a question; by default on everything but a CPU.
        turn_seconds: The shortest turn of a training where both do not fit.
    """

    def __init__(
        self,
        name: str = "cpu",
        memory_bytes: int = 0,
        *,
        counts_memory: bool | None = None,
        turn_seconds: float = TURN_SECONDS,
    ) -> None:
        self.name = name
        self.memory_bytes = memory_bytes
        self.counts_memory = not self.is_cpu if counts_memory is None else counts_memory
        self._turn_seconds, self._pictures_seconds = turn_seconds, PICTURE_TURNS * turn_seconds
        self._lock = threading.RLock()
        self._running: dict[str, _Use] = {}
        self._wishes: dict[str, _Wish] = {}
        self._warm: dict[str, int] = {}
        self._left_at: dict[str, float] = {}
        self._releasers: dict[str, Callable[[], None]] = {}

    @property
    def is_cpu(self) -> bool:
        """Whether kinds share by time slices of the system and not by memory."""
        return devices_of(self.name)[0] == "cpu"

    def share(self, kind: str, num_devices: int = 1) -> DeviceShare:
        """The devices and the threads for one kind of job.

        The threads do not depend on what else runs: a training that is resumed must compute with
        as many as before, or its numbers differ.

        Args:
            kind: The kind of job.
            num_devices: How many devices it uses at once; the first ones of a group.
        """
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        half = (cores or 1) // 2
        threads = (cores or 1) - half if kind == "training" else half
        name = "+".join(devices_of(self.name)[:num_devices])
        return DeviceShare(name, max(1, threads // num_devices), CPU_NICE if self.is_cpu else 0)

    def on_release(self, kind: str, releaser: Callable[[], None]) -> None:
        """Says how to drop what a kind keeps on the device between its jobs."""
        self._releasers[kind] = releaser

    @property
    def busy(self) -> bool:
        """Whether a job is running."""
        return bool(self._running)

    def runs(self, kind: str) -> bool:
        """Whether a job of this kind is running."""
        return kind in self._running

    def free_bytes(self, kind: str) -> int | None:
        """The room for a job of this kind; ``None`` if room is no question.

        There is none while another kind has waited for its turn for too long.
        """
        if not self.counts_memory or not self.memory_bytes:
            return None
        with self._lock:
            if self._owes_turn(kind):
                return 0
            others = [use for other, use in self._running.items() if other != kind]
            used = sum(map(self._present_bytes, others))
        return max(0, self.memory_bytes - used)

    def _present_bytes(self, use: _Use) -> int:
        """What one kind's use leaves no room for: all of it as soon as the others' turn is over."""
        if use.held_bytes is None or self._is_over(use):
            return use.full_bytes
        return use.held_bytes

    def _is_over(self, use: _Use) -> bool:
        """Whether a kind has stood aside for long enough; never during the first picture."""
        is_late = time.monotonic() - use.since >= self._pictures_seconds
        return is_late and (use.has_served or len(self._running) == 1)

    def _owes_turn(self, kind: str) -> bool:
        """Whether another kind has waited for room for a whole turn, and for longer than this."""
        mine = self._wishes.get(kind)
        now = time.monotonic()
        return any(
            other not in self._running
            and now - wish.since >= self._pictures_seconds
            and (mine is None or wish.since < mine.since)
            for other, wish in self._wishes.items()
            if other != kind
        )

    def take(
        self, kind: str, claim: Callable[[int | None], JobT | None], size: Callable[[JobT], int]
    ) -> JobT | None:
        """Claims a job that fits and holds its room, as one step; one of a kind runs at a time.

        Args:
            kind: The kind of job.
            claim: Claims one that needs at most the given room.
            size: The room that it needs.
        """
        with self._lock:
            if kind in self._running:
                return None
            job = claim(self.free_bytes(kind))
            if job is not None:
                self._hold(kind, size(job))
        return job

    def _hold(self, kind: str, required_bytes: int) -> None:
        self._wishes.pop(kind, None)
        self._running[kind] = _Use(required_bytes, since=time.monotonic())
        self._make_room(kind, required_bytes)

    def _make_room(self, kind: str, required_bytes: int) -> None:
        """Drops what others keep warm if it does not fit beside a job that begins."""
        if not self.counts_memory:
            return
        self._warm.pop(kind, None)  # what was warm is part of what runs now
        # A job that does not say what it needs is given the whole device.
        needed = required_bytes or self.memory_bytes
        for other in [name for name in self._warm if name not in self._running]:
            if needed + sum(self._warm.values()) > self.memory_bytes:
                self._release(other)

    def _release(self, kind: str) -> None:
        self._warm.pop(kind, None)
        releaser = self._releasers.get(kind)
        if releaser is None:
            return
        try:
            releaser()
        except Exception:
            logger.exception("%s did not release the device", kind)

    def give_back(self, kind: str) -> None:
        """Ends the use by one kind; what it may have left warm is remembered."""
        with self._lock:
            use = self._running.pop(kind, None)
            self._left_at[kind] = now = time.monotonic()
            for other in self._running.values():
                if other.held_bytes is not None and not other.has_served:
                    other.has_served, other.since = True, now
            if use is not None and kind in self._releasers:
                self._warm[kind] = use.full_bytes or self.memory_bytes

    def grow(self, kind: str, held_bytes: int) -> None:
        """Notes that a running kind holds more than its job said, so that others leave it that."""
        with self._lock:
            use = self._running[kind]
            use.full_bytes = max(use.full_bytes, min(held_bytes, self.memory_bytes))

    # --- turns on a device that does not hold both --------------------------------------------
    def want_room(self, kind: str, required_bytes: int) -> None:
        """Notes that jobs of a kind wait for room that others hold.

        Args:
            kind: The kind of the jobs.
            required_bytes: What the smallest of them needs; 0 if none waits (any more).
        """
        with self._lock:
            before = self._wishes.pop(kind, None)
            if required_bytes:
                since = before.since if before else time.monotonic()
                self._wishes[kind] = _Wish(required_bytes, since)

    def is_wanted(self, kind: str) -> bool:
        """Whether others wait for room that this kind holds and could give."""
        with self._lock:
            use = self._running.get(kind)
            if use is None:
                return False
            room = self.memory_bytes - use.least_bytes
            return any(
                wish.required_bytes <= room - self._used_without(kind, other)
                for other, wish in self._wishes.items()
                if other != kind
            )

    def _used_without(self, *kinds: str) -> int:
        """What other kinds than these compute with."""
        return sum(use.full_bytes for kind, use in self._running.items() if kind not in kinds)

    def should_stand_aside(self, kind: str) -> bool:
        """Whether a running kind has had its turn and others wait for its room."""
        with self._lock:
            use = self._running.get(kind)
            if use is None or use.held_bytes is not None:
                return False
            return time.monotonic() - use.since >= self._turn_seconds and self.is_wanted(kind)

    def stand_aside(self, kind: str, held_bytes: int) -> None:
        """Notes that a running kind has left the device but for some bytes: others may come."""
        with self._lock:
            use = self._running[kind]
            use.held_bytes = use.least_bytes = held_bytes
            use.since, use.has_served = time.monotonic(), False

    def come_back(self, kind: str, *, hurry: bool = False) -> bool:
        """Gives a kind that stands aside its room again, if it is its turn and nobody is in it.

        Args:
            kind: The kind of job.
            hurry: Whether it is its turn as soon as those who run now are done.

        Returns:
            Whether it may compute.
        """
        with self._lock:
            use = self._running[kind]
            if hurry:
                use.since, use.has_served = time.monotonic() - self._pictures_seconds, True
            if use.full_bytes + self._used_without(kind) > self.memory_bytes:
                return False
            if not self._is_over(use) and (self.is_wanted(kind) or self._lingers(kind)):
                return False
            use.held_bytes, use.since = None, time.monotonic()
            self._make_room(kind, use.full_bytes)
        return True

    def _lingers(self, kind: str) -> bool:
        """Whether another kind has left just now and may be back at once."""
        lately = time.monotonic() - min(LINGER_SECONDS, self._turn_seconds)
        return any(left > lately for other, left in self._left_at.items() if other != kind)

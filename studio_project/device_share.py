"""How the training and the generation of one worker process share its device.

On a CPU both run, each with half of the threads and at low priority. On a GPU a job is claimed only
if it fits beside what the other kind is running; what the other kind merely keeps warm is dropped
when it would not fit. How a job computes, and which job comes next, is decided elsewhere.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

logger = logging.getLogger(__name__)

CPU_NICE = 10

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


class Device:
    """The one device of this process, or the group of them, and who uses how much of it.

    What a job needs it needs on each device that it uses, and every job uses the first one; so one
    account serves a whole group.

    Args:
        name: ``cpu``, ``mps``, ``cuda:0``, or a group such as ``cuda:0+cuda:1``.
        memory_bytes: The memory of each; 0 if unknown, and then nothing is ever refused for room.
    """

    def __init__(self, name: str = "cpu", memory_bytes: int = 0) -> None:
        self.name = name
        self.memory_bytes = memory_bytes
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._running: dict[str, int] = {}
        self._warm: dict[str, int] = {}
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
        """The room for a job of this kind; ``None`` if room is no question."""
        if self.is_cpu or not self.memory_bytes:
            return None
        with self._lock:
            used = sum(size for other, size in self._running.items() if other != kind)
        return max(0, self.memory_bytes - used)

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
        self._running[kind] = required_bytes
        if self.is_cpu:
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
        with self._changed:
            size = self._running.pop(kind, None)
            if size is not None and kind in self._releasers:
                self._warm[kind] = size or self.memory_bytes
            self._changed.notify_all()

    @contextmanager
    def lease(self, kind: str, required_bytes: int = 0) -> Iterator[DeviceShare]:
        """Holds the device for one kind, waiting for room if need be."""
        with self._changed:
            held = kind in self._running
            if not held:
                self._changed.wait_for(lambda: self._has_room(kind, required_bytes))
                self._hold(kind, required_bytes)
        try:
            yield self.share(kind)
        finally:
            if not held:
                self.give_back(kind)

    def _has_room(self, kind: str, required_bytes: int) -> bool:
        free = self.free_bytes(kind)
        return free is None or required_bytes <= free

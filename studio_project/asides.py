"""A run that stands aside: what is said to its child when others need the device, and when not.

Whose turn it is is decided in ``device_share``; how a child leaves the device and comes back, bit
for bit, is its own business.
"""

from __future__ import annotations

from studio_project import jobs
from studio_project.child_output import Message
from studio_project.child_process import Child
from studio_project.device_share import Device
from studio_project.jobs import Job
from studio_project.models import Worker
from studio_project.seats import Seat


def ask_for_room(job_class: type[Job], worker: Worker, device: Device) -> None:
    """Tells jobs that wait for room why they do, and the device that they do."""
    free = device.free_bytes(job_class.queue_name)
    if free is not None:
        device.want_room(job_class.queue_name, jobs.note_device_busy(job_class, worker, free))


class Aside:
    """Where one run stands: at work, asked to stand aside, or aside.

    Args:
        kind: Its kind of job.
        child: Does it.
        device: What it shares with other kinds.
        is_able: Whether it can stand aside at all; else it is never asked to.
    """

    def __init__(self, kind: str, child: Child | Seat, device: Device, *, is_able: bool) -> None:
        self._kind, self._child, self._device = kind, child, device
        self._is_asked = not is_able
        self.is_aside = False

    def look(self, stop: str) -> bool:
        """Asks the child to stand aside or to come back, if it is time.

        Args:
            stop: How it was asked to stop. For what shall be kept it needs the device as soon as
                can be; every other end needs none.

        Returns:
            Whether it may go on since now.
        """
        if self.is_aside:
            may_compute = stop in ("", "keep")
            hurry = stop == "keep"
            if not may_compute or not self._device.come_back(self._kind, hurry=hurry):
                return False
            self.is_aside = self._is_asked = False
            return self._child.send({"cmd": "resume"})
        if not self._is_asked and not stop and self._device.should_stand_aside(self._kind):
            self._is_asked = True
            self._child.send({"cmd": "stand_aside"})
        return False

    def heard(self, message: Message) -> bool:
        """Takes what the child says; returns whether it has left room for others just now."""
        if message["type"] == "memory":
            self._device.grow(self._kind, int(message["held_bytes"]))
        if message["type"] != "aside":
            return False
        self._device.stand_aside(self._kind, int(message["held_bytes"]))
        self.is_aside = True
        return True

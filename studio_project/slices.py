"""Turns on a device: when a run has lasted long enough for somebody else's job to come first.

Only that is decided here. The run is stopped by ``supervision``; who comes next is told in
``jobs.ordering``.
"""

from __future__ import annotations

import time

from studio_project import jobs
from studio_project.device_share import Device
from studio_project.jobs import Job
from studio_project.models import Worker


class Slice:
    """The turn of one run.

    Args:
        job: The claimed job; its class says how long a turn is.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._started_at = time.monotonic()
        self._has_stepped = False
        self.is_over = False

    def stepped(self) -> None:
        """Notes progress: every turn does at least one step, so that all jobs come to an end."""
        self._has_stepped = True

    def skip(self, seconds: float) -> None:
        """Leaves time out of the turn in which the run stood aside for others."""
        self._started_at += seconds

    def look(self, worker: Worker, device: Device) -> None:
        """Ends the turn if it has lasted long enough and another user's job would come next."""
        job, seconds = self._job, self._job.slice_seconds()
        lasted = time.monotonic() - self._started_at
        if self.is_over or not seconds or lasted < seconds or not self._has_stepped:
            return
        if job.step >= job.total_steps:
            return  # what is left is less work than coming back to it
        self.is_over = jobs.others_first(job, worker, device.free_bytes(job.queue_name))

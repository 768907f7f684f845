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

    It lasts as long as the job's class says, but works at least as long as it took to begin:
    where starting takes longer than a turn, two users' jobs would otherwise do nothing else.

    Args:
        job: The claimed job; its class says how long a turn is.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._started_at = time.monotonic()
        self._first_step_at: float | None = None
        self.is_over = False

    def stepped(self) -> None:
        """Notes progress: every turn does at least one step, so that all jobs come to an end."""
        if self._first_step_at is None:
            self._first_step_at = time.monotonic()

    def skip(self, seconds: float) -> None:
        """Leaves time out of the turn in which the run stood aside for others."""
        self._started_at += seconds
        if self._first_step_at is not None:
            self._first_step_at += seconds

    def look(self, worker: Worker, device: Device) -> None:
        """Ends the turn if it has lasted long enough and another user's job would come next."""
        job, seconds = self._job, self._job.slice_seconds()
        if self.is_over or not seconds or self._first_step_at is None:
            return
        beginning = self._first_step_at - self._started_at
        if time.monotonic() - self._started_at < max(seconds, 2 * beginning):
            return
        if job.step >= job.total_steps:
            return  # what is left is less work than coming back to it
        self.is_over = jobs.others_first(job, worker, device.free_bytes(job.queue_name))

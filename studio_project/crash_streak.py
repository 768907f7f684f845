"""Children that crash on different jobs in a row: the third puts its worker aside."""

from __future__ import annotations

import logging
import threading
from uuid import UUID

from studio_project.jobs import Job
from studio_project.models import Worker

logger = logging.getLogger(__name__)

QUARANTINE_CRASHES = 3


class CrashStreak:
    """The jobs on which the children of this process crashed since one last ended well."""

    def __init__(self) -> None:
        self._jobs: set[UUID] = set()
        self._lock = threading.Lock()

    def note(self, worker: Worker | None, job: Job, *, crashed: bool) -> None:
        """Counts the end of a child, and puts the worker aside if it is one crash too many."""
        if worker is None:
            return
        with self._lock:
            if crashed:
                self._jobs.add(job.pk)
            else:
                self._jobs.clear()
            streak = len(self._jobs)
        if streak == worker.crash_streak:
            return
        worker.crash_streak, rows = streak, Worker.objects.filter(pk=worker.pk)
        rows.update(crash_streak=streak)
        if streak >= QUARANTINE_CRASHES:
            rows.update(quarantined=True)
            logger.error("children crashed on %s jobs in a row: this worker takes no more", streak)

    def forget(self) -> None:
        """Begins to count anew."""
        with self._lock:
            self._jobs.clear()

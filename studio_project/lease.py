"""Keeps the lease of a job while the thread that does it is busy with something long.

Copying files, hashing and uploading take longer than a lease on a slow disk. The keeper renews from
a thread of its own, but only for a while after the last sign of life of the thread that it stands
in for: one that hangs loses its job all the same.
"""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType

from django.conf import settings
from django.db import DatabaseError, connection

from studio_project.jobs import Job, JobLost

logger = logging.getLogger(__name__)


class LeaseKeeper:
    """Renews the lease of one claim, as a context.

    Args:
        job: The claimed job.
    """

    def __init__(self, job: Job) -> None:
        # A twin: whatever becomes of the caller's object, this claim is the one that is kept.
        self._claim = type(job)(pk=job.pk, epoch=job.epoch)
        self._ended = threading.Event()
        self._seen_at = time.monotonic()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def seen(self) -> None:
        """The thread that does the job lives."""
        self._seen_at = time.monotonic()

    def __enter__(self) -> LeaseKeeper:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _keep(self) -> None:
        try:
            while not self._ended.wait(settings.STUDIO_HEARTBEAT_SECONDS):
                if time.monotonic() - self._seen_at > settings.STUDIO_CHILD_SILENCE_SECONDS:
                    logger.error("%s: whoever does it hangs", self._claim.label)
                    return
                self._renew()
        except JobLost:
            logger.info("%s: the lease is not ours any more", self._claim.label)
        finally:
            connection.close()

    def _renew(self) -> None:
        try:
            self._claim.renew_lease()
        except DatabaseError as error:
            logger.warning("%s: the lease was not renewed: %s", self._claim.label, error)
            connection.close()

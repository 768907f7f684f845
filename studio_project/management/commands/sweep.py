"""Take up what nobody minds any more: expired leases, forgotten jobs, unreferenced files."""

from __future__ import annotations

import logging
import signal
import threading
import time

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser
from django.db import DatabaseError, connections

from studio_project import jobs, site_marker

logger = logging.getLogger(__name__)

FILES_EVERY_SECONDS = 3600.0


class Command(BaseCommand):
    """One round, or rounds without end."""

    help = (
        "Requeue jobs whose worker died, cancel what nobody owns, wake idle workers and remove "
        "files that no row needs. Run it as a service with --forever, on one or more machines."
    )
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        """See ``BaseCommand``."""
        parser.add_argument("--forever", action="store_true", help="go on until stopped")
        parser.add_argument("--files", action="store_true", help="also sweep files in this round")

    def handle(self, *args: object, **options: object) -> None:
        """See ``BaseCommand``."""
        if not options["forever"]:
            done = jobs.sweep()
            if options["files"]:
                done["files"] = jobs.sweep_files()
            self.stdout.write(", ".join(f"{name}: {number}" for name, number in done.items()))
            return
        ended = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())
        site_marker.write()
        files_at = time.monotonic()
        while not ended.wait(settings.STUDIO_SWEEP_SECONDS):
            try:
                jobs.sweep()
                if time.monotonic() - files_at > FILES_EVERY_SECONDS:
                    files_at = time.monotonic()
                    jobs.sweep_files()
            except DatabaseError as error:
                logger.warning("the database is away: %s", error)
                connections.close_all()
            except Exception:
                logger.exception("a round of the sweeper broke")

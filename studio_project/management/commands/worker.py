"""Do the jobs of the site on one device of this machine."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from studio_project.devices import DeviceError, chosen_devices
from studio_project.worker_process import QUEUES, WorkerProcess


class Command(BaseCommand):
    """One worker process; ``manage.py studio`` starts one per device by itself."""

    help = (
        "Do the jobs of the site on one device of this machine. A machine without the site needs "
        "the same environment: database, Redis and storage."
    )
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        """See ``BaseCommand``."""
        parser.add_argument(
            "--device",
            default="",
            help="cpu, mps, cuda:0, a group such as cuda:0+cuda:1; the first one found",
        )
        parser.add_argument(
            "--queues", nargs="+", default=list(QUEUES), choices=QUEUES, help="serve only these"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """See ``BaseCommand``."""
        wanted = str(options["device"] or settings.STUDIO_DEVICES)
        try:
            devices = chosen_devices(wanted)
        except DeviceError as error:
            raise CommandError(str(error)) from error
        if not devices:
            raise CommandError("STUDIO_DEVICES is none: this machine shall have no workers")
        info, budget = devices[0], settings.STUDIO_DEVICE_MEMORY_MB * 10**6
        if budget:
            info = replace(info, memory_bytes=min(budget, info.memory_bytes or budget))
        sys.exit(WorkerProcess(info, tuple(options["queues"])).run())

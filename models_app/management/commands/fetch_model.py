"""Downloads a known model from the model hub."""

from __future__ import annotations

import signal
import threading
import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from models_app.installation import InstallationError, fetch
from models_app.models import DiffusionModel

LINE_EVERY_SECONDS = 2.0


class Command(BaseCommand):
    """Brings a remote model: pinned revision, safetensors and JSON only."""

    help = (
        "Downloads a remote model (see the list on /models) and makes it ready. Interrupted, the "
        "same command goes on where it was. STUDIO_HUB_TOKEN opens models with a licence."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Ask for the model."""
        parser.add_argument("name", help="name or id of the model")
        parser.add_argument(
            "--half",
            action="store_true",
            help="take 16-bit weights: half the download and the disk, the same on a GPU",
        )
        parser.add_argument(
            "--pause-seconds",
            type=float,
            default=1.0,
            help="first pause after a broken connection; it doubles",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Run."""
        model = self._find(options["name"])
        if model.availability == DiffusionModel.Availability.READY:
            self.stdout.write(f"{model.name} is here already.")
            return
        if threading.current_thread() is threading.main_thread():
            # A service manager's TERM leaves the same tidy state as Ctrl-C.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        progress = _Progress(self)
        try:
            fetch(
                model,
                half_precision=options["half"],
                pause_seconds=options["pause_seconds"],
                on_plan=progress.plan,
                on_progress=progress.show,
            )
        except InstallationError as error:
            raise CommandError(error.detail) from error
        except DiffusionModel.DoesNotExist as error:
            raise CommandError(f"{model.name} was deleted meanwhile.") from error
        self.stdout.write(self.style.SUCCESS(f"{model.name} is ready."))

    def _find(self, name: str) -> DiffusionModel:
        rows = DiffusionModel.objects.live().filter(owner=None)
        model = rows.filter(**({"pk": name} if name.isdecimal() else {"name": name})).first()
        if model is None:
            known = ", ".join(
                rows.exclude(source="").order_by("name").values_list("name", flat=True)
            )
            raise CommandError(
                f"There is no model called {name}. "
                + (f"Known: {known}." if known else "Run seed_models first.")
            )
        return model


class _Progress:
    """Writes a line every two seconds: file, amount, speed, time left."""

    def __init__(self, command: BaseCommand) -> None:
        self.command = command
        self.started = self.last = time.monotonic()
        self.at_start: int | None = None

    def plan(self, coming_bytes: int) -> None:
        """Say how much will come."""
        self.command.stdout.write(f"{_amount(coming_bytes)} to download.")
        self.started = time.monotonic()

    def show(self, name: str, here: int, total: int) -> None:
        """Write a line if the last one is old enough, and one at the end."""
        now = time.monotonic()
        if self.at_start is None:
            self.at_start = here
        if now - self.last < LINE_EVERY_SECONDS and here < total:
            return
        self.last = now
        speed = (here - self.at_start) / max(now - self.started, 0.001)
        left = f", {(total - here) / speed / 60:.0f} min left" if speed > 0 and here < total else ""
        share = 100 * here // max(total, 1)
        self.command.stdout.write(
            f"{share:3d} %  {_amount(here)} of {_amount(total)}, {_amount(speed)}/s{left}  {name}"
        )
        self.command.stdout.flush()


def _amount(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"

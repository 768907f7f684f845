"""Check that this machine and this site can work, and say how to cure what cannot."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser

from studio_project import health, jobs, redis_server, site_marker, storage
from studio_project.devices import DeviceError, chosen_devices
from studio_project.jobs.workers import live_workers


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: What was checked.
        state: ``ok``, ``warning`` (the site works, but not as well) or ``failed``.
        detail: What there is.
        cure: What to do about it.
    """

    name: str
    state: str
    detail: str
    cure: str = ""


class Command(BaseCommand):
    """A list of checks; the exit status is 1 if one failed."""

    help = "Check database, Redis, storage, disk, devices and workers, and say what to do."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        """See ``BaseCommand``."""
        parser.add_argument("--json", action="store_true", help="print JSON")

    def handle(self, *args: object, **options: object) -> None:
        """See ``BaseCommand``."""
        findings = [examine() for examine in EXAMINATIONS]
        if options["json"]:
            self.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=2))
        else:
            for finding in findings:
                self.stdout.write(f"{finding.state:>8}  {finding.name}: {finding.detail}")
                if finding.cure:
                    self.stdout.write(f"          {finding.cure}")
        if any(finding.state == "failed" for finding in findings):
            sys.exit(1)


def _database() -> Finding:
    engine = settings.DATABASES["default"]["ENGINE"].rpartition(".")[2]
    if health.check("database"):
        return Finding("database", "ok", f"{engine} answers")
    return Finding(
        "database", "failed", f"{engine} does not answer", "Check STUDIO_DATABASE_URL and start it."
    )


def _migrations() -> Finding:
    if health.check("migrations"):
        return Finding("tables", "ok", "up to date")
    return Finding("tables", "failed", "not of this version", "Run: manage.py studio --prepare")


def _redis() -> Finding:
    if health.check("redis"):
        return Finding("Redis", "ok", "answers")
    try:
        binary = redis_server.find_binary()
    except redis_server.NoServerError as error:
        return Finding("Redis", "failed", "does not answer", str(error))
    return Finding(
        "Redis",
        "warning",
        "does not answer",
        f"manage.py studio starts {binary}; otherwise check STUDIO_REDIS_URL.",
    )


def _storage() -> Finding:
    key = storage.new_key("doctor", suffix=".txt")
    try:
        storage.save(key, b"studio")
        with storage.open_key(key) as file:
            whole = file.read() == b"studio"
        storage.delete(key)
    except Exception as error:
        return Finding("storage", "failed", repr(error), "Check STUDIO_STORAGE_URL and its rights.")
    if not whole:
        return Finding("storage", "failed", "reads back something else", "Check the storage.")
    return Finding("storage", "ok", settings.STUDIO_STORAGE_URL or str(settings.MEDIA_ROOT))


def _disk() -> Finding:
    free = shutil.disk_usage(settings.DATA_DIR).free
    detail = f"{free / 1024**3:.1f} GiB free under {settings.DATA_DIR}"
    if free >= settings.STUDIO_MIN_FREE_BYTES:
        return Finding("disk", "ok", detail)
    return Finding(
        "disk", "failed", detail, "Uploads and jobs are refused until there is more room."
    )


def _devices() -> Finding:
    try:
        found = chosen_devices(settings.STUDIO_DEVICES)
    except DeviceError as error:
        return Finding("devices", "failed", str(error), "Check STUDIO_DEVICES, drivers and torch.")
    if not found:
        return Finding("devices", "ok", "none wanted on this machine")
    return Finding("devices", "ok", ", ".join(f"{info.device} ({info.name})" for info in found))


def _marker() -> Finding:
    refusal = site_marker.refusal()
    if not refusal:
        return Finding("site marker", "ok", f"code {site_marker.code_version()}")
    if refusal == "storage":
        return Finding(
            "site marker",
            "warning",
            "not found in the storage",
            "The site writes it when it starts. If it runs, this machine has another storage.",
        )
    return Finding(
        "site marker",
        "warning",
        "the site runs another version of the code",
        "Bring both to the same version and restart them; until then workers here take no jobs.",
    )


def _workers() -> Finding:
    names = {queue: live_workers(queue) for queue in _queue_names()}
    idle = [queue for queue, workers in names.items() if not workers]
    if not idle:
        return Finding("workers", "ok", "every queue has one")
    return Finding(
        "workers",
        "warning",
        f"nobody serves {', '.join(idle)}",
        "manage.py studio starts workers; on a GPU machine run: manage.py worker",
    )


def _queue_names() -> list[str]:
    return [job_class.queue_name for job_class in jobs.job_classes()]


def _guarded(examine: Callable[[], Finding]) -> Callable[[], Finding]:
    """A check that cannot be made has failed, and the others are made all the same."""

    def guarded() -> Finding:
        try:
            return examine()
        except Exception as error:
            name = examine.__name__.strip("_").replace("_", " ")
            return Finding(name, "failed", repr(error), "Cure what failed above first.")

    return guarded


EXAMINATIONS = tuple(
    _guarded(examine)
    for examine in (
        _database,
        _migrations,
        _redis,
        _storage,
        _disk,
        _devices,
        _marker,
        _workers,
    )
)

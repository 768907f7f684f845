"""A whole site in processes of its own, started and stopped by a test."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from studio_project.management.demo_client import DemoClient

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "correct horse 7 battery"


def poll(
    check: Callable[[], Any], *, seconds: float, what: str, longest_pause_seconds: float = 0.3
) -> Any:
    """Return the first true answer of a check, or fail at the deadline.

    What takes long is asked less often, for asking takes the cores from those who work.
    """
    started = time.monotonic()
    while (waited := time.monotonic() - started) < seconds:
        answer = check()
        if answer:
            return answer
        time.sleep(min(0.05 + waited / 40, longest_pause_seconds))
    raise AssertionError(f"not within {seconds} s: {what}")


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Site:
    """`manage.py studio` on a data directory and a port of its own."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "site.log"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("STUDIO_")},
            "STUDIO_DATA_DIR": str(folder / "data"),
            "STUDIO_PORT": str(self.port),
            "STUDIO_BASE_URL": self.url,
            "STUDIO_DEVICES": "cpu",
            "STUDIO_ADMIN_USERNAME": "root",
            "STUDIO_ADMIN_PASSWORD": PASSWORD,
            "STUDIO_LEASE_SECONDS": "6",
            "STUDIO_HEARTBEAT_SECONDS": "1",
            "STUDIO_SWEEP_SECONDS": "1",
            "STUDIO_MIN_FREE_BYTES": "100000000",
            **environment,
        }
        self.environment.pop("DJANGO_SETTINGS_MODULE", None)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start everything and wait until the site is ready."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", "studio"],
                cwd=ROOT,
                env=self.environment,
                stdout=out,
                stderr=out,
            )
        try:
            poll(self._ready_or_dead, seconds=180, what="the site's /readyz")
        except AssertionError:
            self.stop()
            raise

    def _ready_or_dead(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the site ended:\n{self.log.read_text()[-4000:]}")
        return self.answers("/readyz")

    def answers(self, path: str) -> bool:
        """Say whether a path answers 200."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def stop(self) -> None:
        """Stop as a service manager would."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(timeout=60)

    def processes(self, needle: str) -> list[psutil.Process]:
        """Return the site's living processes whose command line holds the needle."""
        assert self.process is not None
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if needle in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def manage(self, *arguments: str) -> str:
        """Run a manage.py command in the site's environment and return its output."""
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def user(self, name: str = "") -> DemoClient:
        """Sign a new user up over HTTP and return their client."""
        client = DemoClient(self.url)
        client.name = name or f"user-{secrets.token_hex(4)}"  # type: ignore[attr-defined]
        client.sign_up(client.name, PASSWORD)  # type: ignore[attr-defined]
        return client

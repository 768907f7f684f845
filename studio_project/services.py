"""Long-running processes of one site under one roof: started, watched, restarted, stopped.

A service is any command. Its output becomes lines of one log with the service's name before them.
What the services of a site are is told in the ``studio`` command.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TextIO

from studio_project.child_process import spawn

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
# A service that has run for this long was well; its next failure is a first one again.
WELL_SECONDS = 60.0
COLOURS = ("36", "32", "33", "35", "34", "96", "92", "93")


class Log:
    """One log for many processes, a line at a time, with a prefix per process.

    Args:
        out: Where it is written; coloured if that is a terminal and NO_COLOR is not set.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._lock = threading.Lock()
        self._colours: dict[str, str] = {}
        self._coloured = self._out.isatty() and "NO_COLOR" not in os.environ

    def write(self, name: str, line: str) -> None:
        """Writes one line of a process."""
        with self._lock:
            prefix = f"{name:<10} | "
            if self._coloured:
                colour = self._colours.setdefault(name, COLOURS[len(self._colours) % len(COLOURS)])
                prefix = f"\x1b[{colour}m{prefix}\x1b[0m"
            try:
                self._out.write(f"{prefix}{line}\n")
                self._out.flush()
            except (OSError, ValueError):
                # The terminal has gone; the site goes on.
                return

    def follow(self, name: str, stream: IO[bytes], unsaid: Sequence[str] = ()) -> threading.Thread:
        """Copies a process's output until it ends."""

        def copy() -> None:
            with stream:
                for data in stream:
                    line = data.decode("utf-8", "replace").rstrip()
                    if not any(text in line for text in unsaid):
                        self.write(name, line)

        thread = threading.Thread(target=copy, name=f"log-{name}", daemon=True)
        thread.start()
        return thread


@dataclass
class Service:
    """One process that shall always run.

    Attributes:
        name: Its name in the log.
        command: Program and arguments.
        env: Its environment.
        stop_seconds: How long it may take to stop before it is killed.
        unsaid: Lines with one of these texts are left out of the log.
    """

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    stop_seconds: float = 20.0
    unsaid: Sequence[str] = ()
    process: subprocess.Popen[bytes] | None = None
    failures: int = 0
    started_at: float = 0.0
    start_again_at: float = 0.0
    _follower: threading.Thread | None = field(default=None, repr=False)

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.process is not None and self.process.poll() is None

    def start(self, log: Log, cwd: Path) -> None:
        """Starts the process; the kernel kills it when this one dies."""
        self.process = spawn(
            self.command,
            env=self.env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.started_at = time.monotonic()
        self.start_again_at = 0.0
        if self.process.stdout is not None:
            self._follower = log.follow(self.name, self.process.stdout, self.unsaid)

    def look_after(self, log: Log, cwd: Path) -> None:
        """Starts the process again if it has ended, after a pause that grows with each failure."""
        if self.process is None or self.alive:
            return
        now = time.monotonic()
        if not self.start_again_at:
            if now - self.started_at > WELL_SECONDS:
                self.failures = 0
            pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**self.failures)
            self.failures += 1
            self.start_again_at = now + pause
            status = self.process.returncode
            log.write("studio", f"{self.name} ended ({_words(status)}); again in {pause:g} s")
        elif now >= self.start_again_at:
            self.start(log, cwd)

    def signal(self, number: int) -> None:
        """Sends a signal to the process group, if it still runs."""
        if self.process is not None and self.alive:
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                return


def _words(status: int) -> str:
    if status >= 0:
        return f"status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


class Services:
    """The services of a site, watched by the thread that calls ``watch``.

    Args:
        log: Where their output goes.
        cwd: Their working directory.
    """

    def __init__(self, log: Log, cwd: Path) -> None:
        self.log = log
        self.cwd = cwd
        self._services: list[Service] = []

    def add(self, service: Service) -> Service:
        """Starts a service and looks after it from now on."""
        self._services.append(service)
        service.start(self.log, self.cwd)
        return service

    def __iter__(self) -> Iterator[Service]:
        return iter(tuple(self._services))

    def watch(self) -> None:
        """Restarts what has ended; call it again and again."""
        for service in self._services:
            service.look_after(self.log, self.cwd)

    def stop(self, names: Sequence[str] | None = None, *, hurry: threading.Event) -> None:
        """Asks services to stop, all at once, and kills those that do not in time.

        Args:
            names: Which; all of them by default.
            hurry: Once set, nobody is waited for.
        """
        chosen = [one for one in self._services if names is None or one.name in names]
        self._services = [one for one in self._services if one not in chosen]
        for service in chosen:
            service.signal(signal.SIGTERM)
        began = time.monotonic()
        waiting = [service for service in chosen if service.alive]
        while waiting:
            for service in waiting:
                if hurry.is_set() or time.monotonic() - began > service.stop_seconds:
                    self.log.write("studio", f"{service.name} did not stop in time and is killed")
                    service.signal(signal.SIGKILL)
                    service.process.wait()  # type: ignore[union-attr]
            time.sleep(0.05)
            waiting = [service for service in waiting if service.alive]
        for service in chosen:
            if service._follower is not None:
                service._follower.join(1.0)

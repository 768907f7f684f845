"""Children forked from a process that has the libraries loaded.

A trainer or an engine imports torch and diffusers for four seconds, most of what it does for a tiny
model. Tests of what comes after that take their children from here: processes of their own all the
same, with their own pipes, signals and ends. That children start from nothing is what ``test_main``
of both and the tests with a whole site are about.

Run as a script this is the process that forks: ``python -m tests.warm FD``, for as long as the
other end of the socket is open.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODULES = ("training_app.trainer", "generation_app.engine")
_ORDER_BYTES = 1 << 16


class WarmProcess:
    """A child that was forked, spoken to like a ``subprocess.Popen`` with three pipes."""

    def __init__(self, status_fd: int, pipes: list[int]) -> None:
        self.stdin, self.stdout, self.stderr = (
            os.fdopen(fd, mode) for fd, mode in zip(pipes, ("wb", "rb", "rb"), strict=True)
        )
        self.returncode: int | None = None
        self._ended = threading.Event()
        status = os.fdopen(status_fd)
        self.pid = int(status.readline())
        threading.Thread(target=self._watch, args=(status,), name="warm-child", daemon=True).start()

    def _watch(self, status: Any) -> None:
        with status:
            self.returncode = int(status.readline() or -signal.SIGKILL)
        self._ended.set()

    def poll(self) -> int | None:
        """The exit status, negative for a signal; ``None`` while it runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end and returns the exit status."""
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired("a warm child", timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        """Kills it, if it still runs."""
        # It may have ended and been reaped just now.
        with contextlib.suppress(ProcessLookupError):
            if self.returncode is None:
                os.kill(self.pid, signal.SIGKILL)


class Nursery:
    """The process with the libraries.

    Args:
        env: The environment in which it loads them.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.warm", str(theirs.fileno())],
                cwd=ROOT,
                env=dict(env),
                pass_fds=[theirs.fileno()],
            )

    def start(self, module: str, *, env: Mapping[str, str], cwd: Path = ROOT) -> WarmProcess:
        """Starts what ``python -m`` would, with a pipe for each standard stream."""
        pairs = [os.pipe() for _ in range(4)]
        theirs = [pairs[0][0], *(pair[1] for pair in pairs[1:])]
        ours = [pairs[0][1], *(pair[0] for pair in pairs[1:])]
        order = json.dumps([module, str(cwd), dict(env)]).encode()
        assert len(order) <= _ORDER_BYTES
        socket.send_fds(self._line, [order], theirs)
        for fd in theirs:
            os.close(fd)
        return WarmProcess(ours.pop(), ours)

    def close(self) -> None:
        """Lets it end; it forks no more."""
        self._line.close()
        self._process.wait(20)


def _serve(line: socket.socket) -> None:
    """Forks a keeper for each order, and that the child, whose end it tells."""
    while True:
        order, fds, _flags, _address = socket.recv_fds(line, _ORDER_BYTES, 4)
        if not order:
            return
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if os.fork() == 0:
            line.close()
            *streams, status = fds
            pid = os.fork()
            if pid == 0:
                os.close(status)
                _become(*json.loads(order), streams)
            for fd in streams:
                os.close(fd)
            os.write(status, f"{pid}\n".encode())
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            os.write(status, f"{code}\n".encode())
            os._exit(0)
        for fd in fds:
            os.close(fd)


def _become(module: str, cwd: str, env: dict[str, str], streams: list[int]) -> None:
    """Is what ``python -m`` would be, to the very end of the interpreter."""
    os.setpgid(0, 0)
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.exit()


def main() -> None:
    """Loads what children need and serves."""
    from studio_project.child_protocol import die_with_parent, loading_libraries

    die_with_parent()
    with loading_libraries():
        import diffusers

        import generation_app.engine.resident  # noqa: F401
        import training_app.trainer.run  # noqa: F401

        # The classes of a pipeline come when they are asked for.
        for name in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
            getattr(diffusers, name)
    _serve(socket.socket(fileno=int(sys.argv[1])))
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


if __name__ == "__main__":
    main()

"""The worker's half of a child: starts it, reads its lines, stops it and what it started.

The child's output is drained by threads of its own, so that it never waits for a database; of its
progress only the latest is kept. This module knows nothing of jobs: ``supervision`` does.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import queue
import select
import subprocess
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any, NoReturn

import psutil

from studio_project import child_protocol
from studio_project.child_output import LogTail, Mailbox, Message

logger = logging.getLogger(__name__)

GRACE_SECONDS = 20.0
# How long what was written to a log may take to be read.
LOG_SECONDS = 0.2
CHILD_ID_VARIABLE = "STUDIO_CHILD_ID"
# What a child may know of the site: nothing that opens the database, Redis or the storage.
_HIDDEN = ("STUDIO_", "DJANGO_", "AWS_", "PGPASSWORD", "HF_TOKEN")

_children: weakref.WeakSet[Child] = weakref.WeakSet()


class _Spawner:
    """Starts processes from one thread that lives as long as this process.

    A parent-death signal fires when the *thread* that started the child ends, so the threads that
    come and go must not start any.
    """

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[tuple[dict[str, Any], Future[Any]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._pid = 0

    def start(self, **arguments: Any) -> subprocess.Popen[bytes]:
        """Like ``subprocess.Popen``, from the long-lived thread."""
        with self._lock:
            if self._pid != os.getpid():
                self._pid = os.getpid()
                threading.Thread(target=self._serve, name="spawner", daemon=True).start()
        future: Future[subprocess.Popen[bytes]] = Future()
        self._orders.put((arguments, future))
        return future.result()

    def _serve(self) -> None:
        while True:
            arguments, future = self._orders.get()
            try:
                future.set_result(subprocess.Popen(**arguments))
            except BaseException as error:
                future.set_exception(error)


_spawner = _Spawner()


def spawn(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str | Path | None = None,
    nice: int = 0,
    **streams: Any,
) -> subprocess.Popen[bytes]:
    """Starts a command in a process group of its own that the kernel kills when we die.

    Args:
        command: Program and arguments; never through a shell.
        env: Its whole environment.
        cwd: Its working directory.
        nice: How much it gives way to others.
        **streams: ``stdin, stdout, stderr`` of ``subprocess.Popen``.
    """
    launcher = [sys.executable, "-I", "-S", child_protocol.__file__, str(os.getpid()), str(nice)]
    return _spawner.start(
        args=[*launcher, "--", *command], env=dict(env), cwd=cwd, process_group=0, **streams
    )


class Child:
    """A trainer or an engine, running.

    Args:
        module: What ``python -m`` runs; or, for another program, its whole command.
        env: Added to the environment, from which the site's secrets are taken out.
        cwd: Its working directory; this project's by default.
        nice: How much it gives way to others.
    """

    is_shared = False

    def __init__(
        self,
        module: str | Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        nice: int = 0,
    ) -> None:
        command = [sys.executable, "-m", module] if isinstance(module, str) else list(module)
        self._id = uuid.uuid4().hex
        self.messages = Mailbox()
        self._boxes: dict[str, Mailbox] = {}
        self._boxes_lock = threading.Lock()
        self._log = LogTail()
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._process = spawn(
            command,
            env=_child_environment(env or {}, self._id),
            cwd=cwd or Path(__file__).resolve().parent.parent,
            nice=nice,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.pid = self._process.pid
        self._log_stream: IO[bytes] = self._process.stderr  # type: ignore[assignment]
        _children.add(self)
        self._threads = [
            threading.Thread(target=target, args=(stream,), name=f"child-{name}", daemon=True)
            for name, target, stream in (
                ("messages", self._read_messages, self._process.stdout),
                ("log", self._read_log, self._process.stderr),
                ("commands", self._write_commands, self._process.stdin),
            )
        ]
        for thread in self._threads:
            thread.start()

    # --- reading ----------------------------------------------------------------------------
    def _read_messages(self, stream: IO[bytes]) -> None:
        limit = child_protocol.MAX_LINE_BYTES
        with stream:
            while line := stream.readline(limit + 1):
                if len(line) > limit and not line.endswith(b"\n"):
                    self._log.add(b"[a line of over 64 KiB was left out]\n")
                    while line and not line.endswith(b"\n"):
                        line = stream.readline(limit)
                    continue
                message = _parse(line)
                if message is None:
                    self._log.add(line)
                elif (box := self._box_of(message)) is not None:
                    box.put(message)
        self._close_all()

    def _box_of(self, message: Message) -> Mailbox | None:
        """Where a message belongs; nowhere if it is about a job that nobody watches any more."""
        if "job_id" not in message:
            return self.messages
        return self._boxes.get(str(message["job_id"]))

    def open_box(self, job_id: str) -> Mailbox:
        """Returns where messages arrive from now on that name a job in ``job_id``."""
        box = Mailbox()
        with self._boxes_lock:
            self._boxes[job_id] = box
            if self.messages.closed:
                box.close()
        return box

    def close_box(self, job_id: str) -> None:
        """Takes no more messages that name a job."""
        box = self._boxes.pop(job_id, None)
        if box is not None:
            box.close()

    def _close_all(self) -> None:
        with self._boxes_lock:
            self.messages.close()
            for box in self._boxes.values():
                box.close()

    def _read_log(self, stream: IO[bytes]) -> None:
        with stream:
            while chunk := stream.read1(65536):  # type: ignore[attr-defined]
                self._log.add(chunk)

    def start_log(self) -> None:
        """Begins a new log: what one job of an engine wrote is not the next one's to read."""
        self._log.clear()

    def log_tail(self) -> str:
        """The last lines that the child wrote to standard error."""
        # A message may overtake the lines that were written before it: each has its own thread.
        deadline, lies_there = time.monotonic() + LOG_SECONDS, True
        while lies_there and time.monotonic() < deadline:
            time.sleep(0.001)  # lets the thread go on that has read and not yet kept it
            try:
                lies_there = bool(select.select([self._log_stream], [], [], 0)[0])
            except (OSError, ValueError):  # it is closed: all was read
                lies_there = False
        return self._log.text()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; ``None`` while it runs."""
        return self._process.poll()

    # --- writing ----------------------------------------------------------------------------
    def send(self, command: Mapping[str, Any]) -> bool:
        """Sends a command without waiting for the child to read it.

        Returns:
            Whether the child still runs.

        Raises:
            ValueError: A number in it is not finite.
        """
        line = json.dumps(command, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        self._outgoing.put(line)
        return self.alive

    def _write_commands(self, stream: IO[bytes]) -> None:
        with contextlib.suppress(OSError), stream:
            while (line := self._outgoing.get()) is not None:
                stream.write(line)
                stream.flush()

    # --- ending -----------------------------------------------------------------------------
    def stop(self, grace_seconds: float = GRACE_SECONDS) -> int:
        """Asks the whole tree to end, waits, and kills what is left.

        Returns:
            The exit status of the child.
        """
        tree = self._tree()
        self._outgoing.put(None)
        if self.alive:
            for process in tree:
                with contextlib.suppress(psutil.Error):
                    process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_seconds)
        return self._end(tree)

    def kill(self) -> int:
        """Kills the whole tree at once; returns the exit status of the child."""
        return self._end(self._tree())

    def _end(self, tree: Iterable[psutil.Process]) -> int:
        _kill([*tree, *self._tree()])
        if self.alive:
            self._process.kill()
        status = self._process.wait()
        self._outgoing.put(None)
        self._close_all()
        for thread in self._threads:
            thread.join(2.0)
        return status

    def _tree(self) -> list[psutil.Process]:
        """The child and all it started, also what left its process group or lost its parent."""
        found: dict[int, psutil.Process] = {}
        with contextlib.suppress(psutil.Error):
            child = psutil.Process(self.pid)
            if self.alive:
                found[child.pid] = child
                found |= {process.pid: process for process in child.children(recursive=True)}
        me = os.getuid()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.uids().real == me and (
                    process.environ().get(CHILD_ID_VARIABLE) == self._id
                ):
                    found[process.pid] = process
        return list(found.values())


def stop_children(grace_seconds: float = GRACE_SECONDS) -> None:
    """Ends every child of this process, all at the same time."""
    threads = [
        threading.Thread(target=child.stop, args=(grace_seconds,), name="stop-child")
        for child in list(_children)
        if child.alive
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def _child_environment(extra: Mapping[str, str], child_id: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_HIDDEN)}
    return {
        **kept,
        "PYTHONUNBUFFERED": "1",
        # Devices are called as the list of this machine's devices calls them.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        # Nothing is fetched behind anybody's back.
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **extra,
        child_protocol.PARENT_PID_VARIABLE: str(os.getpid()),
        CHILD_ID_VARIABLE: child_id,
    }


def _parse(line: bytes) -> Message | None:
    """A message, or ``None`` for what is none."""
    try:
        message = json.loads(line, parse_constant=_refuse, parse_float=_finite)
    except ValueError:
        return None
    return message if isinstance(message, dict) and isinstance(message.get("type"), str) else None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)

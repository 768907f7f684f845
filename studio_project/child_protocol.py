"""The child's half of the pipe between a worker and its engine or trainer.

A child speaks JSON, one object per line, on what was its standard output; everything that
libraries print goes to standard error, which is the job's log. Commands come in on standard
input. This module needs the standard library only, so both engines run without Django.

It does not start processes (see ``child_process``) and knows nothing of jobs, rows or torch.

Run as a script it is the launcher: ``child_protocol.py PARENT_PID NICE -- command …`` asks the
kernel to kill this process when its parent dies, checks that the parent still lives, and
becomes the command.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

MAX_LINE_BYTES = 64 * 1024
PARENT_PID_VARIABLE = "STUDIO_PARENT_PID"
PARENT_CHECK_SECONDS = 1.0
# How soon a child that stands aside hears that it shall stop.
ASIDE_CHECK_SECONDS = 0.1
EXIT_PARENT_GONE = 70
EXIT_DEVICE_BROKEN = 72
STOP_WAYS = frozenset({"cancel", "pause", "keep", "yield"})

# The CPU's allocator and CUDA's libraries have no exception class of their own.
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
_DEVICE_WORDS = ("CUDA error", "HIP error")

_PR_SET_PDEATHSIG = 1

Command = dict[str, Any]
Handler = Callable[["Channel", dict[str, Any]], None]
JointHandler = Callable[["Channel", list[dict[str, Any]]], None]


class ChildError(Exception):
    """An error that the reader of the job shall see: a stable code and its parameters."""

    def __init__(self, code: str, **params: Any) -> None:
        super().__init__(code)
        self.code = code
        self.params = params


def die_with_parent(parent_pid: int | None = None) -> None:
    """Asks the kernel to kill this process when the thread that started it ends.

    Args:
        parent_pid: Who is meant to be the parent. If another process is by now, the parent
            has died already and this process ends at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent_pid is not None and os.getppid() != parent_pid:
        os._exit(EXIT_PARENT_GONE)


def is_speaker() -> bool:
    """Whether this process is the one rank that talks to the worker."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def loading_libraries() -> Iterator[None]:
    """Keeps the garbage collector off while libraries load, and ever after out of what they made.

    There is nothing to free in it, and it is most of what there is: a sixth of the time that
    torch and diffusers take to load, and most of that of each collection later.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class Channel:
    """The line to the worker: messages out, commands in, and the wish to stop.

    Only rank 0 speaks and listens. On every other rank ``send`` does nothing, the one command is
    an empty ``run``, whose request rank 0 has, and no stop is heard but through rank 0. All
    methods may be called from any thread.
    """

    def __init__(self) -> None:
        self._out_fd = -1
        self._in_fd = -1
        self._write_lock = threading.Lock()
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._stop: str | None = None
        self._aside_wanted = False
        self._resumed = threading.Event()
        self._stops: dict[str, str] = {}
        self._speaks = is_speaker()

    def open(self) -> Channel:
        """Takes standard input and output for itself and starts to listen.

        Afterwards a ``print`` lands in the log, a library that reads standard input gets
        nothing, TERM asks for a stop that gives the job back, and this process dies with its
        parent.
        """
        die_with_parent()
        sys.stdout.flush()
        if self._speaks:
            self._out_fd, self._in_fd = os.dup(1), os.dup(0)
        os.dup2(2, 1)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_term if self._speaks else signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=self._watch_parent, name="parent-watch", daemon=True).start()
        if self._speaks:
            threading.Thread(target=self._listen, name="commands", daemon=True).start()
        else:
            self._commands.put({"cmd": "run"})
            self._commands.put(None)
        return self

    def send(self, message_type: str, /, **fields: Any) -> None:
        """Writes one message.

        Raises:
            ValueError: A number is not finite, or the line would be over 64 KiB.
        """
        if not self._speaks:
            return
        text = json.dumps({"type": message_type, **fields}, allow_nan=False, separators=(",", ":"))
        line = text.encode() + b"\n"
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"message {message_type!r} has {len(line)} bytes")
        with self._write_lock:
            try:
                while line:
                    line = line[os.write(self._out_fd, line) :]
            except OSError:
                # Nobody reads any more: the worker has died or given this child up.
                os._exit(EXIT_PARENT_GONE)

    def commands(self) -> Iterator[Command]:
        """Yields each command that is not a stop, until the worker closes the line."""
        while (command := self._commands.get()) is not None:
            yield command

    def stop_requested(self) -> str | None:
        """How the run in progress shall stop (cancel, pause, keep, yield), or ``None``."""
        return self._stop

    def aside_wanted(self) -> bool:
        """Whether the run in progress shall leave the device to others as soon as it can."""
        return self._aside_wanted

    def wait_aside(self) -> str | None:
        """Waits until the device is this run's again.

        Returns:
            How the run shall stop without it, or ``None``: then it has the device. The wish to
            keep what there is needs the device and is obeyed later.
        """
        # The stop is looked for and not waited for: a signal handler may not notify anybody.
        while not self._resumed.wait(ASIDE_CHECK_SECONDS):
            if self._stop not in (None, "keep"):
                return self._stop
        self._resumed.clear()
        return None

    def stop_of(self, job_id: str) -> str | None:
        """How one of several requests at work shall stop, or ``None``."""
        return self._stop or self._stops.get(job_id)

    def _on_term(self, *_: object) -> None:
        self._ask_stop("yield")
        self._commands.put(None)

    def _ask_stop(self, how: str, job_id: str = "") -> None:
        # A cancel is never softened by a later, gentler wish.
        if job_id and self._stops.get(job_id) != "cancel":
            self._stops[job_id] = how
        elif not job_id and self._stop != "cancel":
            self._stop = how

    def _listen(self) -> None:
        with os.fdopen(self._in_fd, "rb") as lines:
            for line in lines:
                command = _parse(line)
                if command is None:
                    continue
                if command.get("cmd") == "stop":
                    how = command.get("how")
                    how = how if how in STOP_WAYS else "cancel"
                    self._ask_stop(how, str(command.get("job_id") or ""))
                    continue
                if command.get("cmd") == "stand_aside":
                    self._aside_wanted = True
                    continue
                if command.get("cmd") == "resume":
                    self._aside_wanted = False
                    self._resumed.set()
                    continue
                if command.get("cmd") == "run":
                    # A stop that came too late for the run before must not hit this one.
                    self._stop, self._stops = None, {}
                self._commands.put(command)
        self._ask_stop("yield")
        self._commands.put(None)

    def _watch_parent(self) -> None:
        parent = os.getppid()
        worker = int(os.environ.get(PARENT_PID_VARIABLE) or parent)
        while os.getppid() == parent and _lives(worker):
            time.sleep(PARENT_CHECK_SECONDS)
        os._exit(EXIT_PARENT_GONE)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _parse(line: bytes) -> Command | None:
    try:
        command = json.loads(line)
    except ValueError:
        return None
    return command if isinstance(command, dict) else None


def is_out_of_memory(exc: BaseException) -> bool:
    """Whether an exception means that memory ran out, on whichever device."""
    # torch's own class is told by its name: this module never imports torch.
    names = {kind.__name__ for kind in type(exc).__mro__}
    if isinstance(exc, MemoryError) or "OutOfMemoryError" in names:
        return True
    return isinstance(exc, RuntimeError) and any(words in str(exc) for words in _MEMORY_WORDS)


def error_of(exc: BaseException) -> tuple[str, dict[str, Any]]:
    """Turns an exception into the code and parameters of an ``error`` message."""
    if isinstance(exc, ChildError):
        return exc.code, exc.params
    if is_out_of_memory(exc):
        return "out_of_memory", {}
    if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "disk_full", {}
    return "internal", {"exception": type(exc).__name__}


def is_device_broken(exc: BaseException) -> bool:
    """Whether an exception, or what it came from, means that this process has lost its device.

    After an illegal access, a failed assertion on the device or a memory fault every later call
    fails like the first; only another process can use the device again.
    """
    seen: list[BaseException] = []
    cause: BaseException | None = exc
    while cause is not None and cause not in seen:
        if _tells_of_device(cause):
            return True
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    return False


def _tells_of_device(exc: BaseException) -> bool:
    if not isinstance(exc, RuntimeError) or is_out_of_memory(exc):
        return False
    names = {kind.__name__ for kind in type(exc).__mro__}
    return "AcceleratorError" in names or any(word in str(exc) for word in _DEVICE_WORDS)


def run_child(
    handler: Handler,
    *,
    once: bool = False,
    together: JointHandler | None = None,
    commands: Mapping[str, Callable[[Channel], None]] | None = None,
) -> int:
    """Serves ``run`` commands until the worker closes the line.

    Args:
        handler: Does one request and sends ``done`` or ``stopped`` itself. What it raises is
            written to the log and answered with an ``error`` message; but when the device is
            broken this process ends without one, which is a crash: the job is tried again.
        once: End after the first request (a trainer) instead of staying (an engine).
        together: Does the ``requests`` of one command side by side, and answers each itself with
            its ``job_id``.
        commands: What to do on other commands, by name; ``release`` for an engine.

    Returns:
        The exit status for ``sys.exit``.
    """
    channel = Channel().open()
    others = commands or {}
    channel.send("ready", pid=os.getpid())
    for command in channel.commands():
        name = str(command.get("cmd"))
        try:
            if name == "run" and together is not None and "requests" in command:
                together(channel, command["requests"])
            elif name == "run":
                handler(channel, command.get("request") or {})
            elif name in others:
                others[name](channel)
        except Exception as exc:
            traceback.print_exc()
            sys.stderr.flush()
            if is_device_broken(exc):
                # At once: a tidy end would speak to the device again.
                os._exit(EXIT_DEVICE_BROKEN)
            code, params = error_of(exc)
            for job in _jobs_of(command) if name == "run" else ():
                channel.send("error", code=code, params=params, **job)
            if once:
                return 1
        if once and name == "run":
            return 0
    return 0


def _jobs_of(command: Command) -> list[dict[str, Any]]:
    """What an answer to each request of a ``run`` says of whose it is."""
    if "requests" not in command:
        return [{}]
    return [{"job_id": request.get("job_id")} for request in command["requests"]]


def launch(arguments: list[str]) -> None:
    """Becomes ``arguments[3:]`` after it has tied this process to its parent."""
    parent_pid, niceness = int(arguments[0]), int(arguments[1])
    die_with_parent(parent_pid)
    if niceness:
        os.nice(niceness)
    command = arguments[3:]
    os.execvpe(command[0], command, os.environ)  # noqa: S606


if __name__ == "__main__":
    launch(sys.argv[1:])

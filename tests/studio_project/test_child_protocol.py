"""The child's half: what it may say, and what its errors become."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading

import pytest

from studio_project import child_protocol
from studio_project.child_protocol import (
    Channel,
    ChildError,
    error_of,
    is_device_broken,
    is_out_of_memory,
)


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ChildError("checkpoint_gone"), "checkpoint_gone"),
        (MemoryError(), "out_of_memory"),
        (OutOfMemoryError(), "out_of_memory"),
        (OSError(errno.ENOSPC, "full"), "disk_full"),
        (OSError(errno.ENOENT, "missing"), "internal"),
        (KeyError("x"), "internal"),
    ],
)
def test_an_exception_becomes_a_code(error: Exception, code: str) -> None:
    assert error_of(error)[0] == code


class AcceleratorError(RuntimeError):
    """Named like torch's."""


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "is_broken"),
    [
        (AcceleratorError("uncorrectable ECC error encountered"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), True),
        (raised_from(ChildError("model_incompatible"), AcceleratorError("assert")), True),
        (AcceleratorError("CUDA error: out of memory"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), False),
        (raised_from(ChildError("out_of_memory"), OutOfMemoryError("CUDA out of memory")), False),
        (RuntimeError("shapes differ"), False),
        (KeyError("CUDA error"), False),
    ],
)
def test_a_broken_device_is_told_from_other_failures(error: Exception, is_broken: bool) -> None:
    assert is_device_broken(error) is is_broken


def test_a_message_is_finite_and_of_bounded_size() -> None:
    read, write = os.pipe()
    channel = Channel()
    channel._out_fd = write
    with pytest.raises(ValueError, match="JSON"):
        channel.send("step", loss=float("nan"))
    with pytest.raises(ValueError, match="bytes"):
        channel.send("preview", data="x" * child_protocol.MAX_LINE_BYTES)
    channel.send("step", loss=0.25)
    assert os.read(read, 100) == b'{"type":"step","loss":0.25}\n'
    os.close(read)
    os.close(write)


def test_only_rank_0_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    Channel().send("step", step=1)  # it has no line to write to


def test_other_ranks_run_without_being_told_and_leave_stopping_to_rank_0() -> None:
    script = (
        "import os, signal, sys; from studio_project.child_protocol import run_child\n"
        "def handle(channel, request):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print(request, channel.stop_requested(), file=sys.stderr)\n"
        "sys.exit(run_child(handle))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input='{"cmd": "run", "request": {"not": "ours"}}\n',
        env=os.environ | {"RANK": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "{} None\n")


def test_a_cancel_is_not_softened() -> None:
    channel = Channel()
    channel._ask_stop("cancel")
    channel._ask_stop("yield")
    assert channel.stop_requested() == "cancel"


def test_a_stop_may_mean_one_of_several_or_all() -> None:
    channel = Channel()
    channel._ask_stop("cancel", "a")
    channel._ask_stop("yield", "a")
    assert [channel.stop_of(name) for name in ("a", "b")] == ["cancel", None]
    assert channel.stop_requested() is None
    channel._ask_stop("yield")
    assert channel.stop_of("b") == "yield"


def test_the_protocol_needs_the_standard_library_only() -> None:
    script = (
        "import sys; before = set(sys.modules); import studio_project.child_protocol;"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "print(sorted(new - set(sys.stdlib_module_names) - {'studio_project'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_child_hears_that_it_shall_stand_aside_and_come_back() -> None:
    read, write = os.pipe()
    channel = Channel()
    channel._in_fd = read
    listener = threading.Thread(target=channel._listen)
    listener.start()
    os.write(write, b'{"cmd": "stand_aside"}\n')
    while not channel.aside_wanted():
        assert listener.is_alive()
    # The wish to keep what there is cannot be obeyed here.
    os.write(write, b'{"cmd": "stop", "how": "keep"}\n{"cmd": "resume"}\n')
    assert channel.wait_aside() is None
    assert not channel.aside_wanted()
    os.write(write, b'{"cmd": "stop", "how": "pause"}\n')
    assert channel.wait_aside() == "pause"
    os.close(write)
    listener.join()


def test_what_libraries_made_is_left_alone_by_the_collector() -> None:
    script = (
        "import gc; from studio_project.child_protocol import loading_libraries\n"
        "with loading_libraries():\n"
        "    assert not gc.isenabled()\n"
        "    import decimal, email.message\n"
        "    kept = [[] for _ in range(1000)]\n"
        "assert gc.isenabled() and gc.get_freeze_count() > 1000\n"
        "assert not any(each is kept for each in gc.get_objects())\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_every_device_says_in_its_own_words_that_memory_ran_out(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory")])
def test_other_failures_are_not_taken_for_want_of_memory(error: BaseException) -> None:
    assert not is_out_of_memory(error)

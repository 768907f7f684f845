"""Processes under one roof: their log, their restarts, and their end."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from studio_project import services
from studio_project.services import Log, Service, Services
from tests.studio_project.conftest import wait_until

Add = Callable[..., Service]


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def roof(out: io.StringIO, tmp_path: Path) -> Iterator[Services]:
    made = Services(Log(out), tmp_path)
    yield made
    hurry = threading.Event()
    hurry.set()
    made.stop(hurry=hurry)


@pytest.fixture
def add(roof: Services) -> Add:
    def make(script: str, name: str = "one", **options: object) -> Service:
        command = [sys.executable, "-u", "-c", script]
        return roof.add(Service(name, command, dict(os.environ), **options))  # type: ignore[arg-type]

    return make


def test_each_line_has_the_name_of_its_process_before_it(add: Add, out: io.StringIO) -> None:
    add("print('hello'); import sys; print('trouble', file=sys.stderr)", "web")
    add("print('hello'); print('advice nobody needs')", "worker", unsaid=("advice",))
    wait_until(lambda: out.getvalue().count("\n") == 3)
    assert sorted(out.getvalue().splitlines()) == [
        "web        | hello",
        "web        | trouble",
        "worker     | hello",
    ]


def test_a_terminal_sees_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    log = Log(terminal)
    log.write("web", "a")
    log.write("worker", "b")
    lines = terminal.getvalue().splitlines()
    assert [line.startswith("\x1b[") for line in lines] == [True, True]
    assert lines[0][:5] != lines[1][:5]
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    Log(plain).write("web", "a")
    assert "\x1b" not in plain.getvalue()


def test_a_log_whose_terminal_has_gone_is_no_reason_to_stop() -> None:
    closed = io.StringIO()
    log = Log(closed)
    closed.close()
    log.write("web", "nobody reads this")


def test_what_ends_is_started_again_after_a_pause_that_grows(
    roof: Services, add: Add, out: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "FIRST_PAUSE_SECONDS", 0.01)
    service = add("import os; os._exit(3)")

    def ended(times: int) -> bool:
        roof.watch()
        return service.failures == times

    wait_until(lambda: ended(3))
    text = out.getvalue()
    assert "one ended (status 3); again in 0.01 s" in text
    assert "again in 0.04 s" in text


def test_a_service_that_was_well_for_long_fails_for_the_first_time_again(
    roof: Services, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "WELL_SECONDS", -1.0)
    service = add("import os; os.kill(os.getpid(), 9)")
    service.failures = 7

    def noticed() -> bool:
        roof.watch()
        return service.failures == 1

    wait_until(noticed)


def test_all_are_asked_to_stop_and_who_does_not_is_killed(
    roof: Services, add: Add, out: io.StringIO
) -> None:
    polite = add("import time; print('up'); time.sleep(600)", "polite")
    deaf = add(
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print('up'); time.sleep(600)",
        "deaf",
        stop_seconds=0.3,
    )
    other = add("import time; print('up'); time.sleep(600)", "other")
    wait_until(lambda: out.getvalue().count("up") == 3)
    roof.stop(["polite", "deaf"], hurry=threading.Event())
    assert (polite.alive, deaf.alive, other.alive) == (False, False, True)
    assert "deaf did not stop in time" in out.getvalue()
    assert list(roof) == [other]
    roof.watch()
    assert not polite.alive  # what was stopped is not started again

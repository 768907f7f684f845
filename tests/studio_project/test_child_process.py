"""Starting children, reading what they say, and ending them with all that they started."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from studio_project.child_output import LogTail, Mailbox
from studio_project.child_process import Child, spawn, stop_children
from tests.studio_project.conftest import wait_until

SCRIPTED = "tests.studio_project.children.scripted"
Start = Callable[..., Child]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start scripted children and leave none behind."""
    children: list[Child] = []

    def make(*arguments: str, **options: Any) -> Child:
        child = Child([sys.executable, "-m", SCRIPTED, *arguments], **options)
        children.append(child)
        ready = child.messages.get(20)
        assert ready is not None
        assert ready["type"] == "ready"
        return child

    yield make
    for child in children:
        child.kill()


def run(child: Child, *actions: tuple[str, Any]) -> None:
    steps = [{"do": name, "with": argument} for name, argument in actions]
    child.send({"cmd": "run", "request": {"actions": steps}})


def until_final(child: Child) -> list[dict[str, Any]]:
    messages = []
    while message := child.messages.get(20):
        messages.append(message)
        if message["type"] in ("done", "error", "stopped"):
            break
    return messages


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_an_engine_stays_for_the_next_request(start: Start) -> None:
    child = start()
    for _ in range(2):
        run(child)
        assert [message["type"] for message in until_final(child)] == ["done"]
    child.send({"cmd": "release"})
    assert child.messages.get(5) == {"type": "warm", "models": []}
    assert child.alive


def test_a_trainer_ends_after_its_request(start: Start) -> None:
    child = start("--once")
    run(child)
    assert until_final(child)[-1]["type"] == "done"
    wait_until(lambda: not child.alive)
    assert child.returncode == 0
    wait_until(lambda: child.messages.finished)


def test_of_progress_the_latest_is_kept_with_its_history(start: Start) -> None:
    child = start()
    run(child, ("steps", 500))
    wait_until(lambda: len(child.messages._messages) >= 2)
    messages = until_final(child)
    steps = [message for message in messages if message["type"] == "step"]
    assert steps[-1]["step"] == 500
    assert len(steps) < 500
    history = [entry["step"] for message in steps for entry in message["history"]]
    assert history == list(range(1, 501))


def test_progress_does_not_pass_a_checkpoint() -> None:
    box = Mailbox()
    for message in (
        {"type": "step", "step": 1},
        {"type": "preview", "data": "a"},
        {"type": "step", "step": 2},
        {"type": "preview", "data": "b"},
        {"type": "checkpoint", "step": 2},
        {"type": "step", "step": 3},
    ):
        box.put(message)
    box.close()
    read = []
    while message := box.get():
        read.append((message["type"], message.get("step", message.get("data"))))
    assert read == [("step", 2), ("preview", "b"), ("checkpoint", 2), ("step", 3)]
    assert box.finished


def test_prints_and_garbage_go_to_the_log_and_not_into_the_messages(start: Start) -> None:
    child = start()
    run(
        child,
        ("print", "a library says hello"),
        ("raw", 'no json\n[1, 2]\n{"no": "type"}\n'),
        ("raw", '{"type": "step", "loss": NaN}\n{"type": "step", "loss": 1e999}\n'),
        ("raw", '{"type": "step", "x": "' + "y" * 100_000 + '"}\n'),
    )
    assert [message["type"] for message in until_final(child)] == ["done"]
    wait_until(lambda: "hello" in child.log_tail())
    assert "no json" in child.log_tail()
    assert "a line of over 64 KiB was left out" in child.log_tail()


def test_a_child_that_floods_its_log_is_neither_blocked_nor_remembered(start: Start) -> None:
    child = start()
    run(child, *[("log", "x" * 100_000 + "\n")] * 30, ("log", "the last line\n"))
    assert until_final(child)[-1]["type"] == "done"
    wait_until(lambda: "the last line" in child.log_tail())
    assert len(child.log_tail()) <= 32 * 1024


def test_a_log_shows_the_last_state_of_a_progress_bar() -> None:
    tail = LogTail()
    tail.add("1 %\r50 %\r100 %\nWörter\x00\n".encode())
    assert tail.text() == "100 %\nWörter\n"
    tail.clear()
    assert tail.text() == ""


def test_an_error_has_a_code_and_parameters(start: Start) -> None:
    child = start()
    run(child, ("raise", "captions_missing"))
    assert until_final(child)[-1] == {
        "type": "error",
        "code": "captions_missing",
        "params": {"number": 3},
    }
    run(child, ("oom", None))
    assert until_final(child)[-1]["code"] == "out_of_memory"
    run(child, ("send", {"type": "phase", "number": float(0)}), ("unknown", None))
    assert until_final(child)[-1]["type"] == "done"
    assert "captions_missing" in child.log_tail()


@pytest.mark.parametrize("how", ["cancel", "pause", "keep", "yield"])
def test_a_child_is_asked_to_stop_and_answers_how(how: str, start: Start) -> None:
    child = start()
    run(child, ("wait", None))
    child.send({"cmd": "stop", "how": how})
    assert until_final(child)[-1] == {"type": "stopped", "how": how, "step": 7}


def test_a_stop_that_comes_too_late_does_not_hit_the_next_request(start: Start) -> None:
    child = start()
    child.send({"cmd": "stop", "how": "cancel"})
    run(child, ("steps", 3))
    assert until_final(child)[-1]["type"] == "done"


def test_term_asks_a_running_child_to_give_its_job_back(start: Start) -> None:
    child = start("--once")
    run(child, ("send", {"type": "phase", "phase": "on"}), ("wait", None))
    assert child.messages.get(20) == {"type": "phase", "phase": "on"}
    psutil.Process(child.pid).terminate()
    assert until_final(child)[-1]["how"] == "yield"


def test_a_crash_is_noticed_with_its_log(start: Start) -> None:
    child = start()
    run(child, ("log", "Segmentation fault\n"), ("exit", 139))
    wait_until(lambda: child.messages.finished)
    assert not child.alive
    assert child.returncode == 139
    assert "Segmentation fault" in child.log_tail()
    assert child.send({"cmd": "release"}) is False


def test_stopping_ends_the_whole_tree_also_what_has_a_session_of_its_own(start: Start) -> None:
    child = start()
    run(child, ("grandchild", None), ("wait", None))
    message = child.messages.get(20)
    assert message is not None
    began = time.monotonic()
    child.stop()
    assert time.monotonic() - began < 10
    wait_until(lambda: is_gone(message["pid"]))
    wait_until(lambda: is_gone(child.pid))


def test_a_crashed_launcher_leaves_no_rank_behind(start: Start) -> None:
    child = start()
    run(child, ("grandchild", None), ("exit", 1))
    message = child.messages.get(20)
    assert message is not None
    wait_until(lambda: not child.alive)
    child.kill()
    wait_until(lambda: is_gone(message["pid"]))


def test_a_child_that_ignores_term_is_killed(start: Start) -> None:
    child = start()
    run(child, ("deaf", None))
    assert child.messages.get(20) is not None
    assert child.stop(grace_seconds=0.3) == -9


def test_all_children_end_together(start: Start) -> None:
    children = [start(), start()]
    stop_children(5)
    assert not any(child.alive for child in children)


def test_a_large_request_does_not_wait_for_its_reader() -> None:
    child = Child([sys.executable, "-c", "import time; time.sleep(600)"])
    began = time.monotonic()
    child.send({"cmd": "run", "request": {"images": ["x" * 100] * 20_000}})
    assert time.monotonic() - began < 2
    child.kill()


def test_children_do_not_learn_the_sites_secrets(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("STUDIO_DATABASE_URL", "STUDIO_REDIS_URL", "STUDIO_SECRET_KEY", "AWS_SECRET"):
        monkeypatch.setenv(name, "canary")
    child = start(env={"OMP_NUM_THREADS": "1"})
    run(child, ("environment", None))
    message = child.messages.get(20)
    assert message is not None
    ours = {name for name in message["names"] if name.startswith(("STUDIO_", "AWS", "DJANGO"))}
    assert ours == {"STUDIO_PARENT_PID", "STUDIO_CHILD_ID"}
    assert "OMP_NUM_THREADS" in message["names"]


def test_children_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from studio_project.child_process import Child\n"
        f"child = Child([sys.executable, '-m', '{SCRIPTED}'])\n"
        "other = Child([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "child.messages.get(20)\n"
        "print(child.pid, other.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    assert not any(is_gone(pid) for pid in pids)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for pid in pids:
        wait_until(lambda pid=pid: is_gone(pid))


def test_a_spawned_process_gives_way_to_others() -> None:
    process = spawn(["sleep", "600"], env={"PATH": "/usr/bin:/bin"}, nice=7)
    expected = min(19, os.nice(0) + 7)
    wait_until(lambda: psutil.Process(process.pid).nice() == expected)
    process.kill()
    process.wait()

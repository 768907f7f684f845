"""The trainer as a real process behind real pipes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.training_app.trainer.conftest import ONE_SAMPLE, Recorder
from tests.warm import Nursery, WarmProcess
from training_app.trainer.run import run

MakeRequest = Callable[..., dict[str, Any]]
TRAINER = "training_app.trainer"
ROOT = Path(__file__).resolve().parents[3]


class Child:
    """The trainer as a process, spoken to as a worker speaks to it."""

    def __init__(
        self, process: subprocess.Popen[bytes] | WarmProcess, request: dict[str, Any]
    ) -> None:
        self.process = process
        self.messages: list[dict[str, Any]] = []
        self.tell({"cmd": "run", "request": request})

    def tell(self, command: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        self.process.stdin.flush()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read() if self.process.stderr else ""
        self.messages.append(json.loads(line))
        return self.messages[-1]

    def read_until(self, *types: str) -> dict[str, Any]:
        while (message := self.read())["type"] not in types:
            pass
        return message

    def close(self) -> tuple[int, str]:
        """Waits for the end and returns the exit status and the log."""
        stdin, stdout, stderr = self.process.stdin, self.process.stdout, self.process.stderr
        assert stdin and stdout and stderr
        # What a killed child has not read is not told any more.
        with contextlib.suppress(BrokenPipeError):
            stdin.close()
        with stdout, stderr:
            log = stderr.read().decode()
        return self.process.wait(120), log


@pytest.fixture
def start(nursery: Nursery) -> Iterator[Callable[..., Child]]:
    """Starts children, from nothing if asked; those that a failed test leaves behind are killed."""
    children: list[Child] = []

    def do(request: dict[str, Any], *, cold: bool = False) -> Child:
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        children.append(
            Child(
                subprocess.Popen([sys.executable, "-m", TRAINER], cwd=ROOT, **pipes)
                if cold
                else nursery.start(TRAINER, env=os.environ),
                request,
            )
        )
        return children[-1]

    yield do
    for child in children:
        child.process.kill()
        if child.process.stdout and not child.process.stdout.closed:
            child.close()


Start = Callable[..., Child]


def test_a_child_trains_and_keeps_its_line_clean(start: Start, make_request: MakeRequest) -> None:
    child = start(make_request(), cold=True)
    done = child.read_until("done", "error")
    assert done["type"] == "done"
    assert child.messages[0]["type"] == "ready"
    assert Path(done["outputs"]["weights"]).exists()
    status, log = child.close()
    assert status == 0
    assert "Traceback" not in log
    assert "torchvision" not in log


def test_a_child_measures_a_training(start: Start, make_request: MakeRequest) -> None:
    child = start(make_request() | {"dry_run": True})
    done = child.read_until("done", "error")
    assert done["type"] == "done"
    assert done["metrics"]["seconds_per_step"] > 0
    assert child.close()[0] == 0


def test_a_child_stops_when_told(start: Start, make_request: MakeRequest) -> None:
    child = start(make_request({"max_train_steps": 5000}))
    child.read_until("step")
    child.tell({"cmd": "stop", "how": "cancel"})
    assert child.read_until("stopped", "done", "error")["how"] == "cancel"
    assert child.close()[0] == 0


PRIOR = {"class_prompt": "a dog", "num_class_images": 4, "tune": "unet", "learning_rate": 1e-4}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("ending", "method", "config"),
    [
        (signal.SIGKILL, "lora", {}),
        (signal.SIGTERM, "lora", {}),
        (signal.SIGKILL, "dreambooth", PRIOR),
        (signal.SIGKILL, "full", {"use_ema": True, "learning_rate": 1e-4}),
    ],
    ids=["kill-lora", "terminate-lora", "kill-dreambooth", "kill-full"],
)
def test_a_child_that_dies_is_resumed_to_the_same_weights(
    start: Start,
    make_request: MakeRequest,
    tmp_path: Path,
    ending: signal.Signals,
    method: str,
    config: dict[str, Any],
) -> None:
    def request(**changes: Any) -> dict[str, Any]:
        return make_request(
            ONE_SAMPLE | config | {"max_train_steps": 30, "checkpoint_every_steps": 10},
            method=method,
            **changes,
        )

    unbroken = Recorder()
    run(unbroken, request(output_folder=str(tmp_path / "unbroken")))
    expected = _weights(unbroken.last)

    first = start(request())
    first.read_until("checkpoint")
    first.read_until("step")
    os.kill(first.process.pid, ending)
    if ending == signal.SIGTERM:
        assert first.read_until("stopped", "done")["how"] == "yield"
    first.close()

    second = start(request(resume_folder=str(tmp_path / "output" / "checkpoints")))
    done = second.read_until("done", "error")
    notes = [message["code"] for message in second.messages if message["type"] == "note"]
    assert notes == (["class_images_made"] if method == "dreambooth" else []) + ["resumed"]
    assert _weights(done) == expected
    second.close()


def _weights(done: dict[str, Any]) -> bytes:
    path = Path(done["outputs"]["weights"])
    if done["outputs"]["layout"] == "folder":
        path = path / "unet" / "diffusion_pytorch_model.safetensors"
    return path.read_bytes()


def test_an_error_has_a_code_and_its_traceback_is_in_the_log(
    start: Start, make_request: MakeRequest, tmp_path: Path
) -> None:
    request = make_request()
    request["images"] = [
        request["images"][0] | {"path": str(tmp_path / "gone.png"), "pixel_sha256": "gone"}
    ]
    child = start(request)
    error = child.read_until("error")
    assert error["code"] == "internal"
    status, log = child.close()
    assert status == 1
    assert "FileNotFoundError" in log
    assert str(tmp_path) not in json.dumps(error)

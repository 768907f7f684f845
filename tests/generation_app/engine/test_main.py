"""The engine as a real child process, spoken to over its pipes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from PIL import Image

ROOT = Path(__file__).parents[3]


class Child:
    """A running engine and its line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def send(self, **command: Any) -> None:
        pipe: IO[str] = self.process.stdin  # type: ignore[assignment]
        pipe.write(json.dumps(command) + "\n")
        pipe.flush()

    def until(self, *types: str) -> list[dict[str, Any]]:
        """Read messages up to the first of one of these types."""
        found: list[dict[str, Any]] = []
        while not found or found[-1]["type"] not in types:
            line = self.process.stdout.readline()  # type: ignore[union-attr]
            assert line, "the child ended"
            assert len(line) <= 64 * 1024
            found.append(json.loads(line))
        return found


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    process = subprocess.Popen(
        [sys.executable, "-m", "generation_app.engine"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DJANGO_SETTINGS_MODULE": "nothing.here"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        made = Child(process)
        made.until("ready")
        yield made
        process.stdin.close()  # type: ignore[union-attr]
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


def test_the_child_paints_survives_errors_stops_and_releases(
    child: Child, order: Callable[..., dict[str, Any]]
) -> None:
    child.send(cmd="run", request=order(preview=True))
    messages = child.until("done", "error")
    assert {"phase", "warm", "step", "image", "done"} <= {m["type"] for m in messages}
    made = messages[-1]["outputs"]["images"][0]
    with Image.open(made["path"]) as image:
        assert image.size == (64, 64)
    before = Path(made["path"]).read_bytes()

    child.send(cmd="run", request=order(width=63))
    assert child.until("done", "error")[-1] == {
        "type": "error",
        "code": "invalid_request",
        "params": {"field": "width", "reason": "out_of_range"},
    }
    child.send(cmd="run", request={})
    assert child.until("done", "error")[-1]["type"] == "error"

    child.send(cmd="run", request=order(num_inference_steps=150, seeds=list(range(50))))
    child.until("step")
    child.send(cmd="stop", how="cancel")
    assert child.until("stopped", "done", "error")[-1] == {"type": "stopped", "how": "cancel"}

    child.send(cmd="run", request=order())
    messages = child.until("done", "error")
    assert "warm" not in {m["type"] for m in messages}
    assert Path(made["path"]).read_bytes() == before

    child.send(cmd="release")
    assert child.until("warm")[-1]["models"] == []


def test_the_longest_prompts_fit_the_line(
    child: Child, order: Callable[..., dict[str, Any]]
) -> None:
    child.send(cmd="run", request=order(prompt="🦊" * 2000, negative_prompt="🐻" * 2000))
    assert child.until("done", "error")[-1]["type"] == "done"

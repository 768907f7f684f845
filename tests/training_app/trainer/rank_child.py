"""What each of two ranks does for ``test_ranks``: steps whose gradients are kept, and runs.

The test itself is the first rank; run as a script this is the other one, which dies at the end.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import training_app.trainer.reporting as reporting
from tests.training_app.trainer.conftest import Recorder, first_gradients
from training_app.trainer.ranks import Ranks
from training_app.trainer.run import run
from training_app.trainer.training import Training


class Staying(Ranks):
    """Ranks that do several runs one after the other."""

    def leave(self) -> None:
        self.require_same(0)


def _run(ranks: Ranks, request: dict[str, Any], recorder: Recorder | None = None) -> dict[str, Any]:
    """What a run told on this rank."""
    recorder = recorder or Recorder()
    run(recorder, request if ranks.is_first else {}, ranks)
    return {
        "steps": [entry[0] for entry in recorder.history],
        "losses": [entry[1] for entry in recorder.history],
        "notes": [note["code"] for note in recorder.of("note")],
        "end": recorder.of("stopped") or [m["type"] for m in recorder.of("done")],
        "samples": len(recorder.of("sample")),
        "checkpoints": [message["step"] for message in recorder.of("checkpoint")],
    }


def _run_short_of_memory(ranks: Ranks, request: dict[str, Any]) -> dict[str, Any]:
    """A run in which memory runs out once, on the second rank."""
    add_up = Training._add_up

    def fail(self: Training) -> torch.Tensor:
        if self.step == 3 and not ranks.is_first and self.micro_batches[0] == 4:
            raise torch.OutOfMemoryError("full")
        return add_up(self)

    Training._add_up = fail  # type: ignore[method-assign]
    try:
        return _run(ranks, request)
    finally:
        Training._add_up = add_up  # type: ignore[method-assign]


def take_part(ranks: Ranks, folder: Path) -> None:
    """Does everything that is ordered; leaves a file of each kind for this rank."""
    orders = json.loads((folder / "orders.json").read_text())
    for name, request in orders["gradients"].items():
        save_file(first_gradients(request, ranks), folder / f"{name}.{ranks.number}.safetensors")
    # Only the first rank is asked to stop.
    asked = Recorder(stop_at=3 if ranks.is_first else None, how="pause")
    told = {
        "whole": _run(ranks, orders["whole"]),
        "paused": _run(ranks, orders["paused"], asked),
        "resumed": _run(ranks, orders["resumed"]),
        "short": _run_short_of_memory(ranks, orders["short"]),
    }
    (folder / f"told.{ranks.number}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    torch.set_num_threads(1)
    reporting.MESSAGES_PER_SECOND = 1e9
    take_part(Staying.join(), Path(sys.argv[1]))
    os._exit(9)

"""One of two ranks: steps whose gradients are kept, faults, and runs that are stopped.

It does what ``test_ranks`` asks of it in one launch, and writes what came out for each rank.
"""

from __future__ import annotations

import json
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


def _steps(recorder: Recorder) -> list[int]:
    return [entry[0] for entry in recorder.history]


def _run(ranks: Ranks, request: dict[str, Any], recorder: Recorder | None = None) -> dict[str, Any]:
    """What a run told on this rank."""
    recorder = recorder or Recorder()
    run(recorder, request if ranks.is_first else {}, ranks)
    return {
        "steps": _steps(recorder),
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
    told = _run(ranks, request)
    Training._add_up = add_up  # type: ignore[method-assign]
    return told


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    reporting.MESSAGES_PER_SECOND = 1e9
    orders = json.loads((folder / "orders.json").read_text())
    ranks = Staying.join()
    for name, request in orders["gradients"].items():
        save_file(first_gradients(request, ranks), folder / f"{name}.{ranks.number}.safetensors")
    told = {
        "whole": _run(ranks, orders["whole"]),
        # Only the first rank is asked to stop.
        "paused": _run(
            ranks, orders["paused"], Recorder(stop_at=3 if ranks.is_first else None, how="pause")
        ),
        "resumed": _run(ranks, orders["resumed"]),
        "short": _run_short_of_memory(ranks, orders["short"]),
    }
    (folder / f"told.{ranks.number}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()

"""A child that answers a dry run as the trainer does, without a step."""

from __future__ import annotations

import sys
from typing import Any

from studio_project.child_protocol import Channel, ChildError, run_child


def handle(channel: Channel, request: dict[str, Any]) -> None:
    assert request["dry_run"] is True
    assert len(request["images"]) == request["config"]["train_batch_size"]
    assert not any(image["caption"] or image["path"] for image in request["images"])
    if request["config"]["train_batch_size"] == 64:
        raise ChildError("out_of_memory")
    metrics = {"seconds_per_step": 0.5, "peak_memory_bytes": 10**9}
    channel.send("done", outputs={}, metrics=metrics)


if __name__ == "__main__":
    sys.exit(run_child(handle, once=True))

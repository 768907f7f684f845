"""The trainer as a child process: ``python -m training_app.trainer``, one request each.

It speaks ``child_protocol`` and nothing else. torch is imported after the line to the
worker is open, so that a stop or a dead worker is noticed while the libraries load. On several
devices ``accelerate launch`` starts one process on each (see ``ranks``).
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from studio_project.child_protocol import Channel, is_speaker, loading_libraries, run_child


def _handle(channel: Channel, request: dict[str, Any]) -> None:
    channel.send("phase", phase="preparing")
    with loading_libraries():
        from training_app.trainer.ranks import Ranks
        from training_app.trainer.run import run

    run(channel, request, Ranks.join())


def main() -> int:
    """Serves one request; the exit status is 0 unless it failed."""
    # No library of ours may reach for a hub: what is not in the folder is an error.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    level = logging.INFO if is_speaker() else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    return run_child(_handle, once=True)


def _end(status: int) -> None:
    """Ends this process; one of several ranks at once.

    A tidy end would wait for ranks that are gone, or be broken off by the threads that listen to
    them, and what there is to say has been said.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        logging.shutdown()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    try:
        status = main()
    except SystemExit as lost:  # another rank is gone
        status = int(lost.code or 0)
    _end(status)

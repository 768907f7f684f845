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

from studio_project.child_protocol import Channel, is_speaker, run_child


def _handle(channel: Channel, request: dict[str, Any]) -> None:
    channel.send("phase", phase="preparing")
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


if __name__ == "__main__":
    sys.exit(main())

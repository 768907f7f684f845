"""Ranks that average one number until they are told to stop: a trainer without a training."""

from __future__ import annotations

import sys
from typing import Any

from studio_project.child_protocol import Channel, run_child


def handle(channel: Channel, request: dict[str, Any]) -> None:
    import torch

    from training_app.trainer.ranks import Ranks

    ranks = Ranks.join()
    told = ranks.share(request)
    number = torch.tensor([float(ranks.number)])
    ranks.average([number])
    channel.send("began", mean=float(number), told=told)
    while not ranks.agree_on_word(channel.stop_requested()):
        ranks.average([number])
    ranks.leave()


if __name__ == "__main__":
    sys.exit(run_child(handle, once=True))

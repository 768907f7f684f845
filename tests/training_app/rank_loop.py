"""Ranks that average one number until they are told to stop: a trainer without a training."""

from __future__ import annotations

import logging
import sys
from typing import Any

from studio_project.child_protocol import Channel, run_child


def handle(channel: Channel, request: dict[str, Any]) -> None:
    import torch

    from training_app.trainer.ranks import Ranks

    ranks = Ranks.join()
    told = ranks.share(request)
    number = torch.tensor([float(ranks.number)])
    step = 0
    while not (how := ranks.agree_on_word(channel.stop_requested())):
        ranks.average([number])
        step += 1
        if step == 1:
            channel.send("began", mean=float(number), told=told)
    logging.error("rank %s stops after step %s", ranks.number, step)
    channel.send("stopped", how=how, step=step)


if __name__ == "__main__":
    logging.basicConfig()
    sys.exit(run_child(handle, once=True))

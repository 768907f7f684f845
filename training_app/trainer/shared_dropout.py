"""Dropout inside the networks, where several ranks share a batch.

Each rank draws the mask of the whole batch from the same random state and applies the rows
that are its own, so what is left out does not depend on how many ranks there are.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from training_app.trainer.ranks import Ranks


class SharedDropout(torch.nn.Module):
    """Dropout of this rank's rows of a batch."""

    def __init__(self, p: float, ranks: Ranks, parts: int) -> None:
        """Draws nothing yet.

        Args:
            p: Share of the inputs that is left out.
            ranks: Who shares the batch.
            parts: How many equal parts a batch has of which each rank gets its share: own
                pictures, then those of the class.
        """
        super().__init__()
        self._p, self._ranks, self._parts = p, ranks, parts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What is left of x (B / ranks, …), scaled so that its mean stays."""
        if not self.training:
            return x
        count, share = self._ranks.count, x.shape[0] // self._parts
        whole = x.new_ones((self._parts * count * share, *x.shape[1:]))
        mask = torch.nn.functional.dropout(whole, self._p)
        mask = mask.view(self._parts, count, share, *x.shape[1:])[:, self._ranks.number]
        return x * mask.reshape(x.shape)


def share_dropout(networks: Iterable[torch.nn.Module], ranks: Ranks, parts: int) -> None:
    """Replaces every dropout of some networks by one that the ranks share.

    Args:
        networks: Those that learn.
        ranks: Who shares a batch; nothing is replaced for one alone.
        parts: As for :class:`SharedDropout`.
    """
    if ranks.count == 1:
        return
    for network in networks:
        for module in list(network.modules()):
            for name, child in module.named_children():
                if isinstance(child, torch.nn.Dropout) and child.p > 0:
                    setattr(module, name, SharedDropout(child.p, ranks, parts))

"""Several processes on one job: which of them this is, and what they agree on.

Every rank holds the whole model, draws what is random for the whole batch and computes its
own rows of it; gradients are averaged, so any number of ranks makes the same steps (to
rounding). The first rank alone caches, samples, saves and speaks; what the user wishes
reaches it and is agreed on before a step, so all stop at the same one.

``accelerate launch`` starts the ranks and says in the environment who is who. Alone, every
method here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta

import torch
import torch.distributed as dist

#: A rank that waits this long for the others gives up: one of them has died or hangs. Long
#: enough for the first to fill caches and paint samples meanwhile.
TIMEOUT = timedelta(hours=2)
#: Gradients are averaged in blocks of this size.
_BLOCK_BYTES = 64 * 1024**2


class Ranks:
    """This process among those that do the same job.

    Attributes:
        number: From 0; the first speaks.
        count: How many there are.
    """

    def __init__(self, device: str) -> None:
        """Joins the others, if there are any.

        Args:
            device: Where this rank computes; decides how gradients travel.
        """
        self.number = int(os.environ.get("RANK", "0"))
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self._control: dist.ProcessGroup | None = None
        if self.count > 1:
            backend = "nccl" if device.startswith("cuda") else "gloo"
            dist.init_process_group(backend, timeout=TIMEOUT)
            # Words travel on the host: no device waits for them.
            self._control = dist.new_group(backend="gloo", timeout=TIMEOUT)

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that caches, samples, saves and speaks."""
        return self.number == 0

    def device(self, name: str) -> str:
        """This rank's own device, where a job is given several of a kind."""
        if self.count > 1 and name.startswith("cuda"):
            return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        return name

    def rows(self, batch_size: int) -> slice:
        """The rows of the whole batch that this rank computes.

        Args:
            batch_size: Of the whole batch; a multiple of the number of ranks.
        """
        share = batch_size // self.count
        return slice(self.number * share, (self.number + 1) * share)

    def average(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replaces each tensor by its mean over all ranks, without waiting on the host."""
        if self.count == 1:
            return
        for block in _blocks(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in block])
            dist.all_reduce(flat)
            flat /= self.count
            parts = flat.split([tensor.numel() for tensor in block])
            torch._foreach_copy_(block, [p.view_as(t) for p, t in zip(parts, block, strict=True)])

    def agree(self, wish: str) -> str:
        """What the first rank says; every rank must ask at the same place.

        Args:
            wish: Of this rank; counts if it is the first. At most 16 ASCII characters.
        """
        if self.count == 1:
            return wish
        word = torch.zeros(16, dtype=torch.uint8)
        word[: len(wish)] = torch.tensor(list(wish.encode("ascii")), dtype=torch.uint8)
        dist.broadcast(word, 0, group=self._control)
        return bytes(word.tolist()).rstrip(b"\0").decode("ascii")

    def wait(self) -> None:
        """Waits until every rank has come here."""
        if self.count > 1:
            dist.barrier(group=self._control)

    def leave(self) -> None:
        """Parts from the others."""
        if self.count > 1:
            dist.destroy_process_group()


def _blocks(tensors: Iterable[torch.Tensor]) -> Iterable[list[torch.Tensor]]:
    """Tensors of one type each, as many as travel well together."""
    block: list[torch.Tensor] = []
    size = 0
    for tensor in tensors:
        if block and (size >= _BLOCK_BYTES or tensor.dtype != block[0].dtype):
            yield block
            block, size = [], 0
        block.append(tensor)
        size += tensor.nbytes
    if block:
        yield block

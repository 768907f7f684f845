"""Several processes on one job: which of them this is, and what they agree on.

Every rank holds the whole model, draws what is random for the whole batch and computes its
own rows of it; gradients are averaged, so any number of ranks makes the same steps (to
rounding). The first rank alone hears the worker, caches, samples, saves and speaks; what the
user wishes is agreed on before a step, so all stop at the same one.

``accelerate launch`` starts the ranks and says in the environment who is who. Alone, every
method here does nothing.

Of faults only those are helped over that every rank knows of: a loss that is not finite, which
is the same on all, and memory that ran out in work done :meth:`Ranks.together`. Whatever else
befalls one rank ends them all, without a word if it did not befall the first: the worker then
takes the job up again from its last checkpoint, as after any crash.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from studio_project.child_protocol import ChildError, is_out_of_memory
from training_app.trainer.reporting import logger

#: A rank that waits this long for the others gives up: one of them hangs. Long enough for the
#: first to fill caches and paint samples meanwhile.
TIMEOUT = timedelta(hours=2)
#: Exit status of a first rank that has lost another one.
EXIT_RANK_LOST = 71
#: Gradients are averaged in blocks of about this size.
_BLOCK_BYTES = 64 * 1024**2
_WELL, _NO_MEMORY, _FAILED = range(3)


class RankLost(SystemExit):
    """Another rank has died or given up, so this one ends, and no handler of errors reports it.

    The launcher ends the others of a rank that fails; one that follows ends as if all were well,
    to leave the first the time to say what has happened.
    """


class Ranks:
    """This process among those that do the same job.

    Attributes:
        number: From 0; the first speaks.
        count: How many there are.
    """

    def __init__(self, number: int = 0, count: int = 1) -> None:
        """Says who is who; :meth:`join` opens the lines between them."""
        self.number, self.count = number, count
        self._gradients: dist.ProcessGroup | None = None
        self._knows_fault = False

    @classmethod
    def join(cls) -> Ranks:
        """Joins the others that the environment names, if there are any."""
        ranks = cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
        if ranks.count > 1:
            # Words travel on the host: no device waits for them.
            ranks._exchange(lambda: dist.init_process_group("gloo", timeout=TIMEOUT))
        return ranks

    def leave(self) -> None:
        """Parts from the others, when all do; this rank goes on alone."""
        if self.count > 1:
            self._exchange(dist.destroy_process_group)
            self._gradients, self.count = None, 1

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that caches, samples, saves and speaks."""
        return self.number == 0

    def take_device(self, names: str) -> str:
        """This rank's own device; on GPUs opens the way that gradients take between them.

        Args:
            names: The devices of all ranks, joined by ``+``: ``cuda:0+cuda:1``.
        """
        if self.count == 1:
            return names.split("+")[0]
        name = names.split("+")[self.number]
        if name.startswith("cuda"):
            torch.cuda.set_device(name)
            self._gradients = self._exchange(lambda: dist.new_group(backend="nccl"))
        return name

    def rows(self, batch_size: int) -> slice:
        """The rows of the whole batch that this rank computes.

        Args:
            batch_size: Of the whole batch; a multiple of the number of ranks.
        """
        share = batch_size // self.count
        return slice(self.number * share, (self.number + 1) * share)

    # --- what they agree on -----------------------------------------------------------------
    def share(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the first rank has, on every rank; it travels as JSON.

        Args:
            values: Of this rank; those of the first count.
        """
        if self.count == 1:
            return values
        content = json.dumps(values).encode() if self.is_first else b""
        size = torch.tensor([len(content)])
        self._exchange(lambda: dist.broadcast(size, 0))
        data = torch.zeros(int(size), dtype=torch.uint8)
        if self.is_first:
            data.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        self._exchange(lambda: dist.broadcast(data, 0))
        shared: Mapping[str, Any] = json.loads(data.numpy().tobytes())
        return shared

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """What the first rank says; every rank must ask at the same place."""
        if self.count == 1:
            return flags
        answer = torch.tensor(flags, dtype=torch.uint8)
        self._exchange(lambda: dist.broadcast(answer, 0))
        return tuple(flag > 0 for flag in answer.tolist())

    def agree_on_word(self, word: str | None) -> str | None:
        """Likewise of a word.

        Args:
            word: At most 16 ASCII characters; an empty one is none.
        """
        if self.count == 1:
            return word
        letters = torch.zeros(16, dtype=torch.uint8)
        for place, letter in enumerate((word or "").encode("ascii")):
            letters[place] = letter
        self._exchange(lambda: dist.broadcast(letters, 0))
        return bytes(letters.tolist()).rstrip(b"\0").decode("ascii") or None

    def require_same(self, number: int) -> None:
        """Ends all ranks unless this number is the same on each.

        Raises:
            RankLost: It is not.
        """
        if self.count == 1:
            return
        ends = torch.tensor([number, -number])
        self._exchange(lambda: dist.all_reduce(ends, dist.ReduceOp.MAX))
        if ends[0] != -ends[1]:
            self._give_up(f"they stand at different places, this one at {number}")

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work that each rank does by itself, and after which all know how it went.

        Memory that ran out on one has run out on all.

        Raises:
            torch.OutOfMemoryError: Memory ran out on another rank.
            RankLost: Another rank has failed in another way.
        """
        if self.count == 1:
            yield
            return
        self._knows_fault = False
        try:
            yield
        except Exception as fault:
            how = _NO_MEMORY if is_out_of_memory(fault) else _FAILED
            if self._worst(how) > how:
                self._give_up("another one has failed")
            raise
        worst = self._worst(_WELL)
        if worst == _NO_MEMORY:
            raise torch.OutOfMemoryError("memory ran out on another device")
        if worst == _FAILED:
            self._give_up("another one has failed")

    def require_known(self, fault: BaseException) -> None:
        """Ends all ranks if the others do not know of a fault on this one.

        Raises:
            RankLost: They do not.
        """
        if self.count > 1 and not (self._knows_fault or isinstance(fault, ChildError)):
            self._give_up(f"of {fault} the others know nothing")

    def _worst(self, how: int) -> int:
        worst = torch.tensor([how])
        self._exchange(lambda: dist.all_reduce(worst, dist.ReduceOp.MAX))
        self._knows_fault = int(worst) == _NO_MEMORY
        return int(worst)

    # --- gradients --------------------------------------------------------------------------
    def average(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replaces each tensor by its mean over all ranks, without waiting for the device."""
        if self.count > 1:
            for block in _blocks(tensors):
                self._exchange(lambda block=block: self._average(block))  # type: ignore[misc]

    def _average(self, block: list[torch.Tensor]) -> None:
        flat = torch.cat([tensor.reshape(-1) for tensor in block])
        dist.all_reduce(flat, group=self._gradients)
        flat /= self.count
        parts = flat.split([tensor.numel() for tensor in block])
        torch._foreach_copy_(
            block, [part.view_as(tensor) for part, tensor in zip(parts, block, strict=True)]
        )

    # --- losing each other ------------------------------------------------------------------
    def _exchange(self, operation: Callable[[], Any]) -> Any:
        """Does what needs the others.

        Raises:
            RankLost: One of them is gone, or this one cannot take part.
        """
        try:
            return operation()
        except RuntimeError as exc:
            self._give_up(str(exc))

    def _give_up(self, reason: str) -> None:
        logger.error("rank %d of %d ends: %s", self.number, self.count, reason)
        raise RankLost(EXIT_RANK_LOST if self.is_first else 0)


def _blocks(tensors: Iterable[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
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

"""What a run has on its device, taken to RAM while others use the device, and brought back.

Every tensor of this process is taken, found by asking the interpreter for all of them, so nothing
that a run has or will have can be forgotten: weights, optimizer state, averages, caches, and the
pictures in work. Tensors stay the same objects with the same strides, and those that share memory
go on sharing it; so everything that refers to them computes on, bit for bit. It works between
operators only: nothing may be in the middle of a backward pass.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

#: What CUDA and its libraries hold of a device beside tensors, as long as the process lives.
CONTEXT_BYTES = 512 * 1024**2

#: Copies a flat tensor of bytes to where it shall be.
Copy = Callable[[torch.Tensor], torch.Tensor]


def most_held_bytes(device: str) -> int:
    """The most that this process has held of a device so far; 0 where that is the RAM."""
    if torch.device(device).type != "cuda":
        return 0
    return torch.cuda.max_memory_reserved(device) + CONTEXT_BYTES


class Luggage:
    """The tensors of this process that live on a device.

    Where the device's memory is the RAM there is nowhere to go, and it stays empty.
    """

    def __init__(self, device: str) -> None:
        """Looks for them.

        Args:
            device: ``cpu``, ``cuda:0``, ``mps``.
        """
        self._device = torch.device(device)
        gc.collect()
        # Copies of weights in the type that is computed in: nobody can move them.
        torch.clear_autocast_cache()  # type: ignore[no-untyped-call]
        self._tensors = [] if self._device.type == "cpu" else tensors_on(self._device.type)

    def take_away(self) -> int:
        """Moves them to RAM.

        Returns:
            The bytes that this process holds on the device all the same.

        Raises:
            RuntimeError: There is too little RAM; nothing was moved.
        """
        move(self._tensors, _to_pinned if self._device.type == "cuda" else torch.Tensor.cpu)
        self._wait()
        if self._device.type == "mps":
            torch.mps.empty_cache()
        if self._device.type != "cuda":
            return 0
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved(self._device) + CONTEXT_BYTES

    def bring_back(self) -> None:
        """Moves them to the device again."""
        move(self._tensors, lambda flat: flat.to(self._device, non_blocking=True))
        # What they leave in RAM may be reused only when the copies are done.
        self._wait()

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _to_pinned(flat: torch.Tensor) -> torch.Tensor:
    # Pinned memory is several times as fast; torch keeps it for the next time.
    return torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True).copy_(flat, non_blocking=True)


def tensors_on(device_type: str) -> list[torch.Tensor]:
    """Every tensor of this process on a kind of device, if it has memory there."""
    found = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
    # What a view was made of may be known to nobody but the view.
    known = {id(tensor) for tensor in found}
    found += [t._base for t in found if t._base is not None and id(t._base) not in known]
    return [tensor for tensor in found if _has_memory(tensor, device_type)]


def _has_memory(tensor: torch.Tensor, device_type: str) -> bool:
    # Compiling leaves tensors behind that stand for others and only say that they are there.
    if isinstance(tensor, FakeTensor | FunctionalTensor) or tensor.layout != torch.strided:
        return False
    return tensor.device.type == device_type and tensor.untyped_storage().nbytes() > 0


def move(tensors: Sequence[torch.Tensor], copy: Copy) -> None:
    """Gives tensors the memory that copying theirs makes, each piece of memory once.

    If a copy cannot be made, no tensor has changed.

    Args:
        tensors: All that use that memory; others would keep what was copied.
        copy: Called with each piece of memory as bytes.
    """
    pieces = {each.data_ptr(): each for each in (t.untyped_storage() for t in tensors)}
    made = {
        address: copy(torch.empty(0, dtype=torch.uint8, device=piece.device).set_(piece))
        for address, piece in pieces.items()
    }
    for tensor in tensors:
        new = made[tensor.untyped_storage().data_ptr()]
        with torch.no_grad():
            tensor.data = torch.empty(0, dtype=tensor.dtype, device=new.device).set_(
                new.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
            )

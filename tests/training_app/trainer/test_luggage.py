"""A run's tensors leave the device and come back: nothing that refers to them notices."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load, load_file
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode

import training_app.trainer.reporting as reporting
from tests.training_app.trainer.conftest import ONE_SAMPLE, Finished, Recorder
from training_app.trainer.luggage import Luggage, move, tensors_on

Train = Callable[..., Recorder]


class CopiedLuggage(Luggage):
    """Moves all that this process has on its CPU to other memory, and back to a third place."""

    # Arrays of numpy go on using it, which is not so on a GPU.
    left: ClassVar[list[torch.Tensor]] = []

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self._tensors = tensors_on("cpu")

    def take_away(self) -> int:
        move(self._tensors, self._copy)
        return 0

    def bring_back(self) -> None:
        move(self._tensors, self._copy)

    def _copy(self, flat: torch.Tensor) -> torch.Tensor:
        self.left.append(flat)
        return flat.clone()


class Asked(Recorder):
    """A channel on which others want the device again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def aside_wanted(self) -> bool:
        self.asked += 1
        return self.asked % 8 == 3

    def wait_aside(self) -> str | None:
        return None


def test_tensors_keep_what_they_are_and_share_memory_as_before() -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    part, turned = whole[1:, ::2], whole.t()
    weight = torch.nn.Parameter(torch.ones(3))
    alias = weight.data
    optimizer = torch.optim.AdamW([weight])
    old = [weakref.ref(each.untyped_storage()) for each in (whole, weight)]
    before = whole.clone()
    assert whole._base is not None  # which nobody else knows of
    mine = {id(each) for each in (whole, whole._base, part, turned, weight, alias)}
    tensors = [each for each in tensors_on("cpu") if id(each) in mine]
    assert len(tensors) == len(mine)
    move(tensors, torch.clone)
    assert [each() for each in old] == [None, None]
    assert torch.equal(whole, before)
    assert (part.shape, part.stride(), turned.stride()) == ((3, 3), (6, 2), (1, 6))
    part[0, 0] = 99.0
    assert whole[1, 0] == turned[0, 1] == 99.0
    weight.sum().backward()
    optimizer.step()
    assert torch.equal(alias, weight.detach())
    assert (alias < 1).all()


def test_when_a_copy_cannot_be_made_nothing_has_changed() -> None:
    first, second = torch.ones(2), torch.zeros(3)
    places = [first.data_ptr(), second.data_ptr()]

    def copy(flat: torch.Tensor) -> torch.Tensor:
        if len(flat) == 12:
            raise RuntimeError("no room")
        return flat.clone()

    with pytest.raises(RuntimeError, match="no room"):
        move([first, second], copy)
    assert [first.data_ptr(), second.data_ptr()] == places


def test_what_compiling_leaves_behind_is_no_luggage() -> None:
    real = torch.ones(4)
    with FakeTensorMode():
        fake = torch.empty(4)
    with FunctionalTensorMode():
        functional = FunctionalTensor.to_functional(torch.ones(4))
    found = {id(tensor) for tensor in tensors_on("cpu")}
    assert id(real) in found
    assert not found & {id(fake), id(functional)}


def test_on_a_cpu_there_is_nowhere_to_go() -> None:
    kept = torch.ones(3)
    place = kept.data_ptr()
    luggage = Luggage("cpu")
    assert luggage.take_away() == 0
    luggage.bring_back()
    assert kept.data_ptr() == place


def test_a_run_that_stood_aside_everywhere_comes_to_the_same_bits(
    train: Train, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "Luggage", CopiedLuggage)
    disturbed = train({**ONE_SAMPLE, "sample_every_steps": 6}, Asked())
    CopiedLuggage.left.clear()
    phases = [message["phase"] for message in disturbed.of("phase")]
    assert len(disturbed.of("aside")) == len(disturbed.of("back")) >= 4
    assert {"caching", "training", "sampling"} <= set(phases)
    assert disturbed.last["type"] == "done"
    weights = load_file(disturbed.last["outputs"]["weights"])
    expected = load(finished.weights)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())

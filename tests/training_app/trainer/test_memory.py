"""When activations are computed twice, on a device of which the memory is made up."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import training_app.trainer.memory as memory
from training_app.trainer.memory import keep_to, settle_checkpointing

GIB = 1024**3


class _Learner:
    """Learns 1 MiB."""

    def __init__(self) -> None:
        self.parameters = {"unet.a": torch.zeros(1024**2 // 4)}
        self.saves_memory = False

    def save_memory(self) -> None:
        self.saves_memory = True


class _Training:
    def __init__(self, error: Exception | None = None) -> None:
        self.learner = _Learner()
        self.rehearsals = 0
        self._error = error

    def rehearse(self) -> None:
        self.rehearsals += 1
        if self._error is not None:
            raise self._error


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A GPU: how much of it is free, is ours, and what a step takes at its peak."""
    numbers = {"free": 8 * GIB, "own": 1 * GIB, "peak": 2 * GIB, "share": 1.0}
    cuda = memory.torch.cuda
    numbers["resets"] = 0

    def reset(device: str) -> None:
        numbers["resets"] += 1

    monkeypatch.setattr(cuda, "reset_peak_memory_stats", reset)
    monkeypatch.setattr(cuda, "max_memory_allocated", lambda device: numbers["peak"])
    monkeypatch.setattr(cuda, "memory_allocated", lambda device: numbers["own"])
    monkeypatch.setattr(cuda, "mem_get_info", lambda device: (numbers["free"], 80 * GIB))
    monkeypatch.setattr(cuda, "get_per_process_memory_fraction", lambda device: numbers["share"])
    monkeypatch.setattr(
        cuda, "set_per_process_memory_fraction", lambda part, device: numbers.update(share=part)
    )
    return numbers


@pytest.mark.parametrize(("peak", "is_on"), [(2, False), (8, False), (8.9, True), (20, True)])
def test_auto_is_on_where_a_step_would_not_fit(
    device: dict[str, Any], peak: float, is_on: bool
) -> None:
    device["peak"] = int(peak * GIB)
    training = _Training()
    assert settle_checkpointing(training, "auto", "cuda:0") is is_on
    assert training.learner.saves_memory is is_on
    assert training.rehearsals == 1


def test_the_optimizer_state_to_come_counts(device: dict[str, Any]) -> None:
    usable = int(memory.USABLE_SHARE * 9 * GIB)
    device["peak"] = usable - 2 * 1024**2
    assert not settle_checkpointing(_Training(), "auto", "cuda:0")
    device["peak"] += 1
    assert settle_checkpointing(_Training(), "auto", "cuda:0")


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")]
)
def test_auto_is_on_where_trying_runs_out_of_memory(
    device: dict[str, Any], error: Exception
) -> None:
    training = _Training(error)
    assert settle_checkpointing(training, "auto", "cuda:0")
    assert device["resets"] == 2  # what was only tried is not the run's peak


def test_another_fault_of_trying_is_not_hidden(device: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        settle_checkpointing(_Training(RuntimeError("shapes differ")), "auto", "cuda:0")


@pytest.mark.parametrize(
    ("wish", "where", "is_on"),
    [("on", "cpu", True), ("off", "cpu", False), ("auto", "cpu", False), ("off", "cuda:0", False)],
)
def test_nothing_is_tried_where_the_answer_is_known(wish: str, where: str, is_on: bool) -> None:
    training = _Training()
    assert settle_checkpointing(training, wish, where) is is_on
    assert training.rehearsals == 0


def test_a_share_of_the_device_is_kept_to(device: dict[str, Any]) -> None:
    keep_to("cuda:0", 0)
    assert device["share"] == 1.0
    device["peak"] = 5 * GIB
    assert not settle_checkpointing(_Training(), "auto", "cuda:0")
    keep_to("cuda:0", 4 * GIB)
    assert device["share"] == 0.05  # of 80
    assert settle_checkpointing(_Training(), "auto", "cuda:0")
    keep_to("cuda:0", 100 * GIB)
    assert device["share"] == 1.0
    keep_to("cpu", 1)

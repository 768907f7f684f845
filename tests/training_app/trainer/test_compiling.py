"""Compiled training, with a backend that makes no kernels: what is traced, when, and its sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from tests.training_app.trainer.conftest import ONE_SAMPLE, Recorder, make_training
from training_app.trainer import compiling
from training_app.trainer.compiling import PAYS_AFTER_STEPS, settle_compiling
from training_app.trainer.reporting import Reporter
from training_app.trainer.training import Training
from training_app.trainer.validation import held_out_loss

MakeRequest = Callable[..., dict[str, Any]]
COMPILED = {"torch_compile": "on", "dropout": 0.1, "validation_images": 1}


@pytest.fixture(autouse=True)
def _tracing_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trace as for the real backend, and run the graphs as they are: kernels take minutes."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS"):
        monkeypatch.setenv(name, "")
    counters.clear()
    yield
    torch._dynamo.reset()
    counters.clear()


def weights_of(run: Recorder) -> dict[str, torch.Tensor]:
    return load_file(run.last["outputs"]["weights"])


def settle(training: Any, channel: Recorder | None = None) -> bool:
    return settle_compiling(training, Reporter(channel or Recorder()))


def test_nothing_is_compiled_inside_steps_and_nothing_falls_apart(
    make_request: MakeRequest,
) -> None:
    training, plain = make_training(make_request(COMPILED)), make_training(make_request(COMPILED))
    assert settle(training)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs == 1
    for _ in range(3):
        made, wanted = training.do_step(), plain.do_step()
        assert torch.allclose(made.loss, wanted.loss, rtol=1e-5)
        assert torch.allclose(made.grad_norm, wanted.grad_norm, rtol=1e-4)
    # Other shapes than those of steps go the ordinary way.
    loss, expected = held_out_loss(training), held_out_loss(plain)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]


@pytest.mark.parametrize(
    ("wish", "steps", "device", "is_compiled"),
    [
        ("off", 100_000, "cuda:0", False),
        ("auto", PAYS_AFTER_STEPS - 1, "cuda:0", False),
        ("auto", PAYS_AFTER_STEPS, "cuda:0", True),
        ("auto", 100_000, "cpu", False),
        ("on", 12, "cpu", True),
    ],
)
def test_it_is_compiled_where_it_pays(
    make_request: MakeRequest, wish: str, steps: int, device: str, is_compiled: bool
) -> None:
    training = make_training(make_request({"torch_compile": wish, "max_train_steps": steps}))
    training.request = replace(training.request, device=device)
    rehearsed: list[object] = []
    training.rehearse = rehearsed.append  # type: ignore[assignment, method-assign]
    assert settle(training) is is_compiled
    assert rehearsed == (training.sampler.buckets if is_compiled else [])


def test_where_it_cannot_be_done_a_run_goes_the_ordinary_way(
    train: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no C++ compiler")

    config = ONE_SAMPLE | {"max_train_steps": 2}
    wanted = weights_of(train(config))
    monkeypatch.setattr(Training, "rehearse", broken)
    run = train(config | {"torch_compile": "on"})
    assert "compiling" in [phase["phase"] for phase in run.of("phase")]
    assert [note["code"] for note in run.of("note")] == ["not_compiled"]
    found = weights_of(run)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_memory_that_runs_out_is_no_reason_to_go_on(
    make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("full")

    training = make_training(make_request(COMPILED))
    monkeypatch.setattr(training, "rehearse", full)
    with pytest.raises(torch.OutOfMemoryError):
        settle(training)

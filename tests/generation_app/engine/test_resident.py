"""The resident engine: warm, bounded, and well after whatever it is asked."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from generation_app.engine import generate, resident
from generation_app.engine.errors import EngineError
from generation_app.engine.resident import Engine
from tests.generation_app.engine.conftest import Recorder, make_lora

Order = Callable[..., dict[str, Any]]


def run(engine: Engine, message: dict[str, Any]) -> Recorder:
    line = Recorder()
    engine.run(line, message)
    return line


def test_a_second_request_loads_nothing_and_encodes_nothing(order: Order) -> None:
    engine = Engine()
    first = run(engine, order())
    assert first.of("warm") == [{"type": "warm", "models": ["Tiny"], "hashes": ["b" * 64]}]
    warm = engine.pipelines.find("b" * 64, "cpu")
    assert warm is not None
    calls: list[int] = []
    warm.pipe.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    second = run(engine, order(seeds=[5, 6]))
    assert calls == []
    assert second.of("done")[0]["metrics"]["text_encoder_calls"] == 0
    assert engine.pipelines.loads == 1
    assert second.of("phase")[0]["phase"] == "denoising"
    run(engine, order(prompt="a dog"))
    assert len(calls) == 1


def test_the_same_adapters_again_cost_nothing(order: Order, lora: Path) -> None:
    engine = Engine()
    run(engine, order(loras=[(lora, 1.0)]))
    warm = engine.pipelines.find("b" * 64, "cpu")
    assert warm is not None
    run(engine, order(loras=[(lora, 1.0)], seeds=[3]))
    assert (warm.adapters.loads, warm.adapters.switches) == (1, 1)
    run(engine, order(loras=[(lora, 0.5)]))
    assert (warm.adapters.loads, warm.adapters.switches) == (1, 2)


def test_pipelines_leave_when_the_budget_is_needed(order: Order) -> None:
    engine = Engine()
    run(engine, order())
    one = engine.pipelines.size_bytes
    small = Engine(budget_bytes=int(one * 2.5))
    for name in ("a", "b", "a", "c"):
        run(small, order(base_sha256=name, model_name=name))
    assert small.pipelines.names == ["a", "c"]
    assert small.pipelines.size_bytes <= one * 2.5
    tiny = Engine(budget_bytes=1)
    run(tiny, order())
    assert tiny.pipelines.names == ["Tiny"]


def test_what_it_holds_of_a_gpu_is_told_before_the_end(
    order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine()
    assert not run(engine, order()).of("memory")  # of RAM the system knows
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: {"cuda:1": 7}[device])
    tell = resident._tell_memory
    monkeypatch.setattr(
        resident, "_tell_memory", lambda line, asked: tell(line, replace(asked, device="cuda:1"))
    )
    line = run(engine, order())
    assert line.messages[-2] == {"type": "memory", "held_bytes": 7}
    assert line.messages[-1]["type"] == "done"


def test_release_drops_everything_and_the_next_request_works(order: Order) -> None:
    engine = Engine()
    run(engine, order())
    line = Recorder()
    engine.release(line)
    assert line.messages == [{"type": "warm", "models": [], "hashes": []}]
    assert engine.pipelines.size_bytes == 0
    assert run(engine, order()).of("done")


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"mode": "paint-by-numbers"}, "mode_unavailable", ""),
    ({"architecture": "svd"}, "invalid_request", "model"),
    ({"width": 63}, "invalid_request", "width"),
    ({"width": "wide"}, "invalid_request", "width"),
    ({"num_inference_steps": 0}, "invalid_request", "num_inference_steps"),
    ({"guidance_scale": float("nan")}, "invalid_request", "guidance_scale"),
    ({"scheduler": "magic"}, "invalid_request", "scheduler"),
    ({"seeds": []}, "invalid_request", "seeds"),
    ({"seeds": [-1]}, "invalid_request", "seeds"),
    ({"prompt": None, "negative_prompt": 3}, "invalid_request", "negative_prompt"),
    ({"device": "toaster"}, "invalid_request", "device"),
    ({"threads": 0}, "invalid_request", "threads"),
    ({"loras": [{"path": "x"}]}, "invalid_request", "loras"),
    ({"loras": [{"path": "x", "sha256": "y", "weight": float("nan")}]}, "invalid_request", "loras"),
    ({"base_folder": "/nowhere", "base_sha256": "gone"}, "model_unavailable", ""),
    ({"base_folder": ""}, "invalid_request", "base_folder"),
]


def test_bad_requests_are_answered_and_leave_the_engine_warm(order: Order) -> None:
    engine = Engine()
    run(engine, order())
    for changes, code, field in BAD:
        with pytest.raises(EngineError) as caught:
            run(engine, order() | changes)
        assert caught.value.code == code, changes
        assert caught.value.params.get("field", "") == field, changes
    assert run(engine, order()).of("done")
    assert engine.pipelines.loads == 1


def test_running_out_of_memory_frees_everything_and_says_so(
    order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine()
    run(engine, order())

    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 90 GiB")

    with monkeypatch.context() as patched:
        patched.setattr(generate, "denoise", fail)
        with pytest.raises(EngineError) as caught:
            run(engine, order())
    assert caught.value.code == "out_of_memory"
    assert caught.value.__context__ is None
    assert engine.pipelines.names == []
    assert run(engine, order()).of("done")


def test_a_full_disk_leaves_no_half_picture(
    order: Order, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = Engine()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("generation_app.engine.metadata.os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            run(engine, order())
    assert list((tmp_path / "out").iterdir()) == []
    assert run(engine, order()).of("done")


def test_fifty_switches_do_not_grow_memory(base: Path, order: Order, tmp_path: Path) -> None:
    engine = Engine()
    run(engine, order())
    warm = engine.pipelines.find("b" * 64, "cpu")
    assert warm is not None
    warm.adapters._max_adapters = 2
    files = [
        make_lora(base, tmp_path / f"{seed}.safetensors", seed=seed, text=seed % 2 == 0)
        for seed in range(4)
    ]
    sizes, modules = [], []
    for turn in range(50):
        run(engine, order(loras=[(files[turn % 4], 1.0)], num_inference_steps=1))
        sizes.append(warm.adapters.size_bytes)
        modules.append(sum(1 for _ in warm.pipe.unet.modules()))
    assert len(warm.adapters.attached) == 2
    assert len(set(sizes[4:])) == 1
    assert modules[4] == modules[-1]
    assert warm.pipe.unet.peft_config.keys() == warm.pipe.unet.peft_config.keys()
    assert len(warm.pipe.unet.peft_config) == 2
    assert len(warm.pipe.text_encoder.peft_config) == 1

"""Several requests in one batch: each as alone, within the promised rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from generation_app.engine import company
from generation_app.engine.denoise import Call, Predictor
from generation_app.engine.resident import Engine
from generation_app.engine.vocabulary import SCHEDULERS
from tests.generation_app.engine.conftest import Recorder

Order = Callable[..., dict[str, Any]]
Pixels = np.ndarray


@pytest.fixture(scope="module")
def engine() -> Engine:
    """Keep one engine warm for all tests."""
    return Engine()


def three(order: Order, tmp_path: Path, **changes: Any) -> list[dict[str, Any]]:
    """Make three requests of one shape that differ in everything else."""
    own: list[dict[str, Any]] = [
        {"prompt": "a cat", "seeds": [1]},
        {"prompt": "a (dog:1.4), " * 30, "seeds": [2], "guidance_scale": 1.0},
        {"prompt": "a fox", "negative_prompt": "grey", "seeds": [3, 4], "guidance_scale": 9.0},
    ]
    folder = "-".join(map(str, changes.values()))
    return [
        order(**one, **changes, job_id=name, output_folder=str(tmp_path / folder / name))
        for name, one in zip("abc", own, strict=True)
    ]


def together(
    engine: Engine, messages: list[dict[str, Any]], line: Recorder | None = None
) -> Recorder:
    line = line or Recorder()
    engine.run_together(line, messages)
    return line


def about(line: Recorder, job_id: str, kind: str) -> list[dict[str, Any]]:
    return [message for message in line.of(kind) if message["job_id"] == job_id]


def pictures(line: Recorder, job_id: str = "") -> list[Pixels]:
    images = about(line, job_id, "image") if job_id else line.of("image")
    return [np.asarray(Image.open(one["path"]), dtype=np.int16) for one in images]


def alone(engine: Engine, message: dict[str, Any], tmp_path: Path) -> list[Pixels]:
    line = Recorder()
    engine.run(line, message | {"output_folder": str(tmp_path / "alone")})
    return pictures(line)


def assert_close(made: Sequence[Pixels], wanted: Sequence[Pixels]) -> None:
    """DESIGN §13: at most 2/255 a value, 0.1/255 in the mean."""
    assert len(made) == len(wanted) > 0
    for one, other in zip(made, wanted, strict=True):
        difference = np.abs(one - other)
        assert difference.max() <= 2
        assert difference.mean() <= 0.1


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_each_picture_is_what_it_would_be_alone(
    engine: Engine, scheduler: str, order: Order, tmp_path: Path
) -> None:
    messages = three(order, tmp_path, scheduler=scheduler)
    line = together(engine, messages)
    for message in messages:
        made = pictures(line, message["job_id"])
        assert_close(made, alone(engine, message, tmp_path))
    everything = [made.tobytes() for name in "abc" for made in pictures(line, name)]
    assert len(set(everything)) == 4


def test_the_unet_is_asked_once_a_step_for_all_and_each_hears_of_its_own(
    engine: Engine, order: Order, tmp_path: Path
) -> None:
    together(engine, three(order, tmp_path))
    pipe = engine.pipelines.find("b" * 64, "cpu").pipe  # type: ignore[union-attr]
    rows: list[int] = []
    hook = pipe.unet.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    line = together(engine, three(order, tmp_path))
    hook.remove()
    # The long prompt has more tokens and is asked for by itself, without guidance one row.
    assert rows == [6, 1] * 3
    steps = [(m["step"], m["total_steps"], m["image_index"]) for m in about(line, "c", "step")]
    assert steps == [(1, 6, 0), (2, 6, 1), (3, 6, 0), (4, 6, 1), (5, 6, 0), (6, 6, 1)]
    assert [m["step"] for m in about(line, "a", "step")] == [1, 2, 3]
    phases = [m["phase"] for m in about(line, "a", "phase")]
    assert phases == ["denoising", "decoding", "saving"]
    [done] = about(line, "c", "done")
    assert [image["seed"] for image in done["outputs"]["images"]] == [3, 4]
    metrics = done["metrics"]
    assert (metrics["company"], metrics["unet_calls"]) == (4, 6)
    own = [m["metrics"]["seconds"] for m in line.of("done")]
    assert metrics["company_seconds"] == pytest.approx(sum(own) - metrics["seconds"], rel=0.3)


def test_pictures_of_one_request_are_at_work_together_if_it_says_so(
    engine: Engine, order: Order, tmp_path: Path
) -> None:
    message = order(seeds=[1, 2, 3])
    wanted = alone(engine, message, tmp_path)
    pipe = engine.pipelines.find("b" * 64, "cpu").pipe  # type: ignore[union-attr]
    rows: list[int] = []
    hook = pipe.unet.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    line = Recorder()
    engine.run(line, message | {"together": 2})
    hook.remove()
    assert rows == [4] * 3 + [2] * 3
    assert_close(pictures(line), wanted)
    assert [image["seed"] for image in line.of("done")[0]["outputs"]["images"]] == [1, 2, 3]


def test_a_broken_device_is_nobodys_fault_and_nobody_is_answered(
    order: Order, tmp_path: Path
) -> None:
    engine = Engine()  # one of its own: what is broken serves nobody any more
    together(engine, three(order, tmp_path))
    pipe = engine.pipelines.find("b" * 64, "cpu").pipe  # type: ignore[union-attr]

    def fail(*_: Any) -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    pipe.unet.register_forward_pre_hook(fail)
    line = Recorder()
    with pytest.raises(torch.AcceleratorError, match="device-side"):
        engine.run_together(line, three(order, tmp_path))
    assert not line.of("error")


def test_one_that_is_stopped_leaves_and_the_others_go_on(
    engine: Engine, order: Order, tmp_path: Path
) -> None:
    messages = three(order, tmp_path)
    line = Recorder(lambda sent: "cancel" if any(m.get("step") == 2 for m in sent) else None)
    line.stops = {"c"}
    together(engine, messages, line)
    assert about(line, "c", "stopped") == [{"type": "stopped", "how": "cancel", "job_id": "c"}]
    assert (about(line, "c", "image"), about(line, "c", "done")) == ([], [])
    for message in messages[:2]:
        made = pictures(line, message["job_id"])
        assert_close(made, alone(engine, message, tmp_path))


def test_one_that_fails_fails_alone(
    engine: Engine, order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [*three(order, tmp_path), order(job_id="d", clip_skip=9), order(job_id="e", width=0)]

    class Spoiled(Predictor):
        def __call__(self, calls: Sequence[Call]) -> list[torch.Tensor]:
            answers = super().__call__(calls)
            return [
                answer * float("nan") if call.conditioning.guidance_scale == 9 else answer
                for call, answer in zip(calls, answers, strict=True)
            ]

    monkeypatch.setattr(company, "Predictor", Spoiled)
    line = together(engine, messages)
    errors = {message["job_id"]: message["code"] for message in line.of("error")}
    codes = {"c": "non_finite_image", "d": "invalid_request", "e": "invalid_request"}
    assert errors == codes
    assert {message["job_id"] for message in line.of("done")} == {"a", "b"}


def test_a_batch_that_is_too_large_is_computed_in_parts(
    engine: Engine, order: Order, tmp_path: Path
) -> None:
    messages = three(order, tmp_path)
    wanted = [alone(engine, message, tmp_path) for message in messages]
    warm = engine.pipelines.find("b" * 64, "cpu")
    assert warm is not None
    entry, refused = warm.pipe.unet.conv_in, []

    def small(_module: Any, given: tuple[torch.Tensor, ...]) -> None:
        if len(given[0]) > 2:
            refused.append(len(given[0]))
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = entry.register_forward_pre_hook(small)
    line = together(engine, messages)
    hook.remove()
    assert refused
    assert not line.of("error")
    for message, pictures_alone in zip(messages, wanted, strict=True):
        assert_close(pictures(line, message["job_id"]), pictures_alone)


def test_a_call_that_fails_fails_for_all_that_share_it(
    engine: Engine, order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Predictor):
        def __call__(self, calls: Sequence[Call]) -> list[torch.Tensor]:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    messages = three(order, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(company, "Predictor", Broken)
        line = together(engine, messages)
    assert [message["code"] for message in line.of("error")] == ["out_of_memory"] * 3
    assert line.of("done") == []
    assert len(together(engine, messages).of("done")) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"num_inference_steps": 4},
        {"width": 72},
        {"scheduler": "euler"},
        {"base_sha256": "c" * 64},
        {"hires_scale": 2.0},
    ],
)
def test_what_differs_in_shape_is_not_painted_along(
    engine: Engine, changes: dict[str, Any], order: Order, tmp_path: Path
) -> None:
    line = together(engine, [order(job_id="a"), order(job_id="b", **changes)])
    [error] = line.of("error")
    assert (error["job_id"], error["params"]) == ("b", {"field": "orders"})
    assert [message["job_id"] for message in line.of("done")] == ["a"]


def test_a_model_that_is_gone_is_everybodys_error(engine: Engine, order: Order) -> None:
    gone = {"base_folder": "/nowhere", "base_sha256": "gone"}
    line = together(engine, [order(job_id=name, **gone) for name in "ab"])
    assert {(m["job_id"], m["code"]) for m in line.of("error")} == {
        ("a", "model_unavailable"),
        ("b", "model_unavailable"),
    }

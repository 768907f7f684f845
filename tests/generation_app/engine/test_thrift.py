"""A device that is too small: what the engine does about it, with faults put into real networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from generation_app.engine.errors import EngineError
from generation_app.engine.footprint import USABLE_SHARE, Measures, Need, peak_bytes
from generation_app.engine.pipelines import WarmPipeline, take_room
from generation_app.engine.resident import Engine
from tests.generation_app.engine.conftest import Recorder
from tests.tiny import make_tiny_sd, make_tiny_svd

Order = Callable[..., dict[str, Any]]
Limit = Callable[[torch.Tensor], bool]
# Rows apart and tiles round otherwise (DESIGN: what equal means).
TOLERANCE, MEAN_TOLERANCE = 2, 0.1


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def engine(order: Order) -> Engine:
    """An engine that has painted the picture once and is warm."""
    made = Engine()
    paint(made, order(output_folder=order()["output_folder"] + "/first"))
    return made


def paint(engine: Engine, message: dict[str, Any]) -> tuple[np.ndarray, list[str]]:
    """Paint, and return the first picture and the codes of the notes."""
    line = Recorder()
    engine.run(line, message)
    done = line.of("done")[0]
    made = done["outputs"]["images"][0]
    picture = Image.open(made.get("still") or made["path"])
    return np.asarray(picture, dtype=np.int16), [n["code"] for n in done["metrics"]["notes"]]


def warm_of(engine: Engine, sha256: str = "b" * 64) -> WarmPipeline:
    found = engine.pipelines.find(sha256, "cpu")
    assert found is not None
    return found


@pytest.fixture
def limit() -> Iterator[Callable[[torch.nn.Module, Limit], list[int]]]:
    """Let a layer run out of memory when its input is too large; returns what it was given."""
    limited = []

    def put(layer: Any, is_too_much: Limit) -> list[int]:
        original, seen = layer.forward, []
        limited.append(layer)

        def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            seen.append(len(x))
            if is_too_much(x):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
            return original(x, *args, **kwargs)

        layer.forward = forward
        return seen

    yield put
    for layer in limited:
        layer.__dict__.pop("forward", None)


def same(first: np.ndarray, second: np.ndarray) -> bool:
    difference = np.abs(first - second)
    return bool(difference.max() <= TOLERANCE and difference.mean() <= MEAN_TOLERANCE)


def test_the_halves_of_guidance_go_one_after_the_other(
    engine: Engine, order: Order, limit: Any
) -> None:
    before, notes = paint(engine, order())
    assert notes == []
    seen = limit(warm_of(engine).pipe.unet.conv_in, lambda x: len(x) > 1)
    after, notes = paint(engine, order())
    assert notes == ["rows_apart"]
    assert same(before, after)
    assert seen == [2] + [1] * 6  # failed once, then two halves in each of three steps
    # The next request of this size does not run into it again; another one may fit.
    seen.clear()
    paint(engine, order(seeds=[5]))
    assert 2 not in seen
    paint(engine, order(width=128))
    assert 2 in seen


def test_what_a_unet_is_told_of_a_hole_is_cut_with_its_rows(
    order: Order, limit: Any, tmp_path: Path
) -> None:
    engine, files = Engine(), {}
    for name, colour in (("image", "teal"), ("mask_image", "white")):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{name}.png")
        files[name] = str(tmp_path / f"{name}.png")
    folder = make_tiny_sd(tmp_path / "nine", in_channels=9)
    message = order(mode="inpaint", base_folder=str(folder), **files)
    before, notes = paint(engine, message)
    assert notes == []
    limit(warm_of(engine).pipe.unet.conv_in, lambda x: len(x) > 1)
    after, notes = paint(engine, message)
    assert notes == ["rows_apart"]
    assert same(before, after)


def test_a_picture_is_decoded_in_tiles(engine: Engine, order: Order, limit: Any) -> None:
    before, _ = paint(engine, order())
    decoder = warm_of(engine).pipe.vae.decoder
    seen = limit(decoder.conv_in, lambda x: x.shape[-1] * x.shape[-2] > 16)
    after, notes = paint(engine, order())
    assert notes == ["in_tiles"]
    assert len(seen) > 4
    assert after.shape == before.shape
    assert not warm_of(engine).pipe.vae.use_tiling
    # Tiles do not see each other; this random network minds more than a trained one.
    assert np.abs(after - before).mean() < 40


def test_only_the_network_that_works_stays_on_the_device(
    engine: Engine, order: Order, limit: Any, lora: Path
) -> None:
    before, _ = paint(engine, order(loras=[(lora, 1.0)]))
    warm = warm_of(engine)
    on_device: list[set[str]] = []

    def is_crowded(_: torch.Tensor) -> bool:
        on_device.append(set(warm.thrift.on_device))
        return len(warm.thrift.on_device) > 1

    layers = (warm.pipe.unet.conv_in, warm.pipe.vae.decoder.conv_in)
    for layer in layers:
        limit(layer, is_crowded)
    after, notes = paint(engine, order(loras=[(lora, 1.0)]))
    assert notes == ["networks_in_turn", "rows_apart"]  # what comes first did not help
    assert on_device[-1] == {"vae"}
    assert {"unet"} in on_device
    assert same(before, after)
    again, _ = paint(engine, order(loras=[(lora, 1.0)]))  # the adapters went with their network
    assert np.array_equal(again, after)
    # A request for which there is room brings everything back.
    for layer in layers:
        layer.__dict__.pop("forward")
    _, notes = paint(engine, order(width=128))
    assert notes == ["networks_in_turn"]
    warm.thrift.begin(warm.thrift._need, 10**12)
    _, notes = paint(engine, order(width=128, memory_bytes=10**12))
    assert warm.thrift.on_device == {"unet", "vae", "text_encoder"}
    assert notes == []


def test_other_pipelines_go_first(order: Order, limit: Any) -> None:
    engine = Engine()
    paint(engine, order(base_sha256="other", model_name="Other"))
    paint(engine, order())
    seen = limit(warm_of(engine).pipe.unet.conv_in, lambda _: len(engine.pipelines.names) > 1)
    line = Recorder()
    engine.run(line, order())
    assert seen[:2] == [2, 2]
    assert line.of("warm")[-1]["models"] == ["Tiny"]
    assert line.of("done")[0]["metrics"]["notes"] == []


def test_when_nothing_helps_it_says_so_and_stays_well(
    engine: Engine, order: Order, limit: Any
) -> None:
    seen = limit(warm_of(engine).pipe.unet.conv_in, lambda _: True)
    with pytest.raises(EngineError) as caught:
        paint(engine, order())
    assert (caught.value.code, caught.value.params) == (
        "out_of_memory",
        {"width": 64, "height": 64},
    )
    assert seen == [2, 1, 1]  # whole, in halves, alone on the device
    assert engine.pipelines.names == []
    assert paint(engine, order())[1] == []


def test_other_failures_are_no_reason_to_save(engine: Engine, order: Order, limit: Any) -> None:
    def broken(_: torch.Tensor) -> bool:
        raise RuntimeError("shapes do not match")

    seen = limit(warm_of(engine).pipe.unet.conv_in, broken)
    with pytest.raises(RuntimeError, match="shapes"):
        paint(engine, order())
    assert seen == [2]
    assert warm_of(engine).thrift.notes() == []


def test_a_clip_is_decoded_frame_by_frame(order: Order, limit: Any, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.new("RGB", (64, 64), "teal").save(path)
    ask = {
        "mode": "image-to-video",
        "architecture": "svd",
        "base_folder": str(make_tiny_svd(tmp_path / "svd")),
        "base_sha256": "svd",
        "image": str(path),
        "num_frames": 4,
        "decode_chunk_size": 4,
        "num_inference_steps": 1,
    }
    message = {k: v for k, v in order().items() if k not in ("prompt", "negative_prompt")} | ask
    for name in ("guidance_scale", "scheduler", "clip_skip", "loras"):
        message.pop(name)
    engine = Engine()
    before, _ = paint(engine, message)
    seen = limit(warm_of(engine, "svd").pipe.vae.decoder.conv_in, lambda x: len(x) > 1)
    after, notes = paint(engine, message)
    assert notes == ["in_tiles"]
    assert seen == [4, 1, 1, 1, 1]
    assert after.shape == before.shape


def test_a_model_is_loaded_so_that_the_request_fits(order: Order) -> None:
    engine = Engine()
    before, notes = paint(engine, order(memory_bytes=10**9))
    assert notes == []
    warm = warm_of(engine)
    weights = {name: warm.thrift.bytes_of(name) for name in ("unet", "vae", "text_encoder")}
    assert sum(weights.values()) == warm.base_bytes
    engine.release(Recorder())
    # Room for the largest network with its work, not for all of them.
    most = peak_bytes("sd1", weights, Need(64, 64, rows=2), Measures(in_turn=True), itemsize=4)
    after, notes = paint(engine, order(memory_bytes=int(most / USABLE_SHARE) + 1))
    assert notes == ["networks_in_turn"]
    assert np.array_equal(before, after)
    assert warm_of(engine).thrift.on_device == {"vae"}


def test_a_model_that_does_not_fit_at_loading_waits_in_ram(
    order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    from generation_app.engine import pipelines

    load, tried = pipelines.load_pipeline, []

    def too_small(*args: Any, **kwargs: Any) -> Any:
        tried.append(kwargs.get("device"))
        if len(tried) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return load(*args, **kwargs)

    monkeypatch.setattr(pipelines, "load_pipeline", too_small)
    engine = Engine()
    assert paint(engine, order())[1] == ["networks_in_turn"]
    assert tried == ["cpu", None]


@pytest.mark.parametrize(
    ("told", "share", "room"), [(0, 1.0, 7 * 2**30), (4 * 2**30, 0.4, 4 * 2**30)]
)
def test_the_engine_keeps_to_its_share_of_a_gpu(
    told: int, share: float, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * 2**30, 10 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2 * 2**30)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda part, device: shares.append(part)
    )
    assert take_room("cuda:0", told) == room  # free, or ours already
    assert shares == [share]
    assert take_room("cpu", told) == (told or None)


def test_what_was_learned_in_a_crowd_is_forgotten_when_there_is_room(
    engine: Engine, order: Order, limit: Any
) -> None:
    unet, crowd = warm_of(engine).pipe.unet, 10**10
    limit(unet.conv_in, lambda x: len(x) > 1)
    assert paint(engine, order(memory_bytes=crowd))[1] == ["rows_apart"]
    unet.conv_in.__dict__.pop("forward")
    assert paint(engine, order(memory_bytes=crowd))[1] == ["rows_apart"]
    assert paint(engine, order(memory_bytes=2 * crowd))[1] == []


def test_a_network_that_finds_no_room_leaves_none_of_itself_behind(engine: Engine) -> None:
    warm = warm_of(engine)
    network, thrift = warm.pipe.vae, warm.thrift
    thrift.on_device.discard("vae")
    moved = []

    def to(where: torch.device) -> None:
        moved.append(str(where))
        if len(moved) == 1:
            raise torch.OutOfMemoryError("half of it is there")

    network.to = to
    try:
        with pytest.raises(torch.OutOfMemoryError):
            thrift._seat("vae")
    finally:
        del network.to
    assert len(moved) == 2
    assert "vae" not in thrift.on_device

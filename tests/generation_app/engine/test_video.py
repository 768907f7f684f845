"""Clips: equal to plain diffusers', written so that players and pages show them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from generation_app.engine import preview
from generation_app.engine.errors import EngineError
from generation_app.engine.resident import Engine
from generation_app.engine.video import Clips
from models_app.loading import load_pipeline
from tests.generation_app.engine.conftest import Recorder
from tests.tiny import make_tiny_svd

Order = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def svd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_svd(tmp_path_factory.mktemp("svd") / "base")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


@pytest.fixture
def ask(order: Order, svd: Path, tmp_path: Path) -> Order:
    path = tmp_path / "picture.png"
    image = Image.new("RGB", (64, 72), "teal")
    ImageDraw.Draw(image).ellipse((10, 10, 50, 50), fill="orange")
    image.save(path)

    def make(**changes: Any) -> dict[str, Any]:
        values = {
            "mode": "image-to-video",
            "architecture": "svd",
            "base_folder": str(svd),
            "base_sha256": "svd",
            "image": str(path),
            "width": 64,
            "height": 72,
            "num_inference_steps": 2,
            "num_frames": 4,
            "decode_chunk_size": 3,
            "noise_aug_strength": 0.1,
            "motion_bucket_id": 90,
            "fps": 5,
        }
        return order(**(values | changes))

    return make


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch) -> list[list[Image.Image]]:
    """Every clip's frames as they were before they were encoded."""
    kept: list[list[Image.Image]] = []
    finish = Clips._finish

    def remember(self: Clips, seed: int, images: list[Image.Image]) -> dict[str, Any]:
        kept.append(images)
        return finish(self, seed, images)

    monkeypatch.setattr(Clips, "_finish", remember)
    return kept


def run(engine: Engine, message: dict[str, Any]) -> Recorder:
    line = Recorder()
    engine.run(line, message)
    return line


@pytest.mark.parametrize("guidance", [(1.0, 3.0), (1.0, 1.0)])
def test_a_clip_equals_plain_diffusers(
    engine: Engine, ask: Order, svd: Path, frames: list[Any], guidance: tuple[float, float]
) -> None:
    low, high = guidance
    message = ask(min_guidance_scale=low, max_guidance_scale=high)
    run(engine, message)
    wanted = load_pipeline(svd, "svd")(
        Image.open(message["image"]),
        width=64,
        height=72,
        num_inference_steps=2,
        num_frames=4,
        decode_chunk_size=3,
        noise_aug_strength=0.1,
        motion_bucket_id=90,
        fps=5,
        min_guidance_scale=low,
        max_guidance_scale=high,
        generator=torch.Generator("cpu").manual_seed(11),
    ).frames[0]
    assert len(frames[0]) == len(wanted) == 4
    for made, plain in zip(frames[0], wanted, strict=True):
        assert np.array_equal(np.array(made), np.array(plain))


def test_each_clip_of_a_request_is_made_again_alone(
    engine: Engine, ask: Order, frames: list[Any]
) -> None:
    line = run(engine, ask(seeds=[3, 4]))
    again = run(engine, ask(seeds=[4]))
    assert np.array_equal(np.array(frames[1][3]), np.array(frames[2][3]))
    assert not np.array_equal(np.array(frames[0][3]), np.array(frames[1][3]))
    made = [line.of("image")[1], again.of("image")[0]]
    assert [(step["step"], step["total_steps"]) for step in line.of("step")] == [
        (1, 4), (2, 4), (3, 4), (4, 4),
    ]  # fmt: skip
    assert made[0]["parameters"]["seed"] == made[1]["parameters"]["seed"] == 4


def test_the_files_play_and_say_how_they_were_made(
    engine: Engine, ask: Order, frames: list[Any]
) -> None:
    [image] = run(engine, ask()).of("image")
    with av.open(image["path"]) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.average_rate, stream.width, stream.height) == (5, 64, 72)
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert '"motion_bucket_id":90' in container.metadata["comment"]
    assert len(decoded) == 4
    # Chroma at half the resolution and a lossy encoder: close, not equal.
    difference = np.abs(decoded[0].astype(int) - np.array(frames[0][0]))
    assert difference.mean() < 12
    # The index comes before the pictures, so that a browser can start at once.
    content = Path(image["path"]).read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    with Image.open(image["animation"]) as animation:
        assert (animation.format, animation.n_frames, animation.size) == ("WEBP", 4, (64, 72))
        animation.load()
        assert animation.info["duration"] == 200
    with Image.open(image["still"]) as still:
        assert np.array_equal(np.array(still), np.array(frames[0][0]))


def test_a_preview_shows_the_middle_frame_and_leaves_the_clip_alone(
    engine: Engine, ask: Order, frames: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(engine, ask())
    monkeypatch.setattr(preview.PreviewClock, "is_due", lambda self, whose: True)
    line = run(engine, ask(preview=True, num_inference_steps=2))
    assert len(line.of("preview")) == 1
    assert np.array_equal(np.array(frames[0][2]), np.array(frames[1][2]))


def test_what_a_clip_cannot_be_is_refused(engine: Engine, ask: Order) -> None:
    for changes, field in (
        ({"num_frames": 1}, "num_frames"),
        ({"num_frames": 1000}, "num_frames"),
        ({"fps": 0}, "fps"),
        ({"noise_aug_strength": float("nan")}, "noise_aug_strength"),
        ({"min_guidance_scale": 4.0, "max_guidance_scale": 2.0}, "min_guidance_scale"),
        ({"image": "/nowhere.png"}, "image"),
        ({"architecture": "sd1"}, "model"),
    ):
        with pytest.raises(EngineError) as caught:
            run(engine, ask(**changes))
        assert caught.value.params["field"] == field, changes
    assert run(engine, ask()).of("done")


def test_a_stop_ends_a_clip_within_a_step(engine: Engine, ask: Order) -> None:
    line = Recorder(lambda sent: "cancel" if sent and sent[-1].get("step") == 1 else None)
    engine.run(line, ask(num_inference_steps=20))
    assert len(line.of("step")) == 1
    assert line.messages[-1] == {"type": "stopped", "how": "cancel"}

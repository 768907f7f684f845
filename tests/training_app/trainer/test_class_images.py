"""Pictures of the class: painted once, shared, mended, told of, stoppable; what they weigh."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import training_app.trainer.class_images as class_images
from models_app.loading import load_pipeline
from tests.training_app.trainer.conftest import Recorder
from training_app.trainer.buckets import Bucket
from training_app.trainer.cache import cache_latents, cache_prompts
from training_app.trainer.class_images import CHUNK, ClassImages, count_class_images
from training_app.trainer.dataset import Example, make_examples
from training_app.trainer.reporting import Reporter, StopRun
from training_app.trainer.request import TrainingImage, TrainingRequest
from training_app.trainer.training import Training

MakeRequest = Callable[..., dict[str, Any]]
Train = Callable[..., Recorder]
PRIOR = {"class_prompt": "a dog", "num_class_images": 6, "sample_inference_steps": 1}


@pytest.fixture
def make(make_request: MakeRequest, tmp_path: Path) -> Callable[..., TrainingRequest]:
    """Requests of DreamBooth with a cold cache."""

    def do(config: dict[str, Any] | None = None, **changes: Any) -> TrainingRequest:
        changes = {"cache_folder": str(tmp_path / "cache")} | changes
        values = make_request(PRIOR | (config or {}), method="dreambooth", **changes)
        return TrainingRequest.from_dict(values)

    return do


Make = Callable[..., TrainingRequest]


def _wanted(request: TrainingRequest) -> ClassImages:
    return ClassImages(make_examples(request.images, request.config), request)


def _paint(request: TrainingRequest, recorder: Recorder | None = None) -> list[Example]:
    wanted = _wanted(request)
    wanted.paint(Reporter(recorder or Recorder()), wanted.num_missing)
    return wanted.examples()


@pytest.fixture
def paintings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How often the base model was loaded to paint."""
    seen: list[str] = []

    def counting(*arguments: Any, **others: Any) -> Any:
        seen.append("loaded")
        return load_pipeline(*arguments, **others)

    monkeypatch.setattr(class_images, "load_pipeline", counting)
    return seen


def test_every_bucket_gets_its_share() -> None:
    image = TrainingImage("1", Path("a.png"), "", "00", 64, 64)
    wide, square = Bucket(128, 64), Bucket(64, 64)
    examples = [Example(image, bucket, ("",), ()) for bucket in (wide, square, square)]
    assert count_class_images(examples, 10) == {square: 7, wide: 4}
    assert count_class_images(examples[:2], 1) == {square: 1, wide: 1}


def test_pictures_of_the_class_are_painted_once_and_shared_by_runs(
    make: Make, paintings: list[str]
) -> None:
    recorder = Recorder()
    first = _paint(make(), recorder)
    assert len(first) == 6 and {example.prompts for example in first} == {("a dog",)}
    assert len({example.image.pixel_sha256 for example in first}) == 6
    assert recorder.of("note")[0] == {
        "type": "note",
        "code": "class_images_made",
        "params": {"count": 2 * CHUNK, "reused": 0},
    }
    told = [message["done"] for message in recorder.of("phase")]
    assert told == [CHUNK, 2 * CHUNK]
    # Another seed, another number, another learning rate: the same pictures.
    again = Recorder()
    fewer = _paint(make({"seed": 9, "num_class_images": 3, "learning_rate": 1e-5}), again)
    assert fewer == first[:3]
    assert again.of("note")[0]["params"] == {"count": 0, "reused": 3}
    more = Recorder()
    assert _paint(make({"num_class_images": 9}), more)[:6] == first
    assert more.of("note")[0]["params"] == {"count": CHUNK, "reused": 5}
    assert len(paintings) == 2


@pytest.mark.parametrize(
    "changes", [{"class_prompt": "a cat"}, {"sample_inference_steps": 2}, {"resolution": 72}]
)
def test_what_would_look_different_is_painted_anew(make: Make, changes: dict[str, Any]) -> None:
    _paint(make())
    assert _wanted(make()).num_missing == 0
    assert _wanted(make(changes)).num_missing == 2 * CHUNK


def test_another_base_has_pictures_of_its_own(make: Make, sd2_folder: Path) -> None:
    _paint(make())
    other = make(base_folder=str(sd2_folder), architecture="sd2")
    assert _wanted(other).num_missing == 2 * CHUNK


def test_damaged_pictures_are_painted_again_and_equal(make: Make) -> None:
    first = _paint(make())
    content = first[1].image.path.read_bytes()
    first[1].image.path.write_bytes(content[: len(content) // 2])
    first[5].image.path.unlink()
    assert _wanted(make()).num_missing == 2 * CHUNK
    assert _paint(make()) == first
    assert first[1].image.path.read_bytes() == content


def test_painting_can_be_stopped_and_finished_pictures_stay(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopping(Recorder):
        def stop_requested(self) -> str | None:
            return "yield" if self.of("phase") else None

    with pytest.raises(StopRun):
        _paint(make(), Stopping())
    assert _wanted(make()).num_missing == CHUNK


def test_the_class_weighs_what_it_is_told_to(make: Make) -> None:
    """A micro-batch's loss is that of the own pictures and the weighted one of the class."""

    def loss(weight: float) -> float:
        request = make({"prior_loss_weight": weight, "train_batch_size": 2})
        reporter = Reporter(Recorder())
        examples = make_examples(request.images, request.config)
        others = _paint(request) if weight else []
        latents = cache_latents([*examples, *others], request, reporter)
        prompts = [example.prompt for example in (*examples, *others)]
        bank = cache_prompts(prompts, request, torch.float32, reporter)
        training = Training(request, examples, latents, bank, others)
        members = [0, 1, 6, 7] if weight else [0, 1]
        draws = training._draw(Bucket(64, 64), 4, torch.Generator().manual_seed(1))
        if not weight:
            draws = type(draws)(**{name: value[:2] for name, value in vars(draws).items()})
        with torch.no_grad():
            return float(training._weigh(*training.predict(Bucket(64, 64), members, draws)))

    own, one, half = loss(0), loss(1), loss(0.5)
    assert one > own > 0
    assert half == pytest.approx((own + one) / 2, rel=1e-5)


def test_a_run_tells_how_far_it_is_until_all_is_cached(train: Train, tmp_path: Path) -> None:
    recorder = train(
        PRIOR | {"max_train_steps": 2}, method="dreambooth", cache_folder=str(tmp_path / "cache")
    )
    phases = [each for each in recorder.of("phase") if each["phase"] == "caching"][1:]
    counted = [(each["done"], each["total"]) for each in phases]
    total = 2 * CHUNK + 6 + 6
    assert counted[-1] == (total, total)
    assert counted == sorted(counted) and {each[1] for each in counted} == {total}
    pictures = list((tmp_path / "cache" / "class_images").rglob("*.png"))
    assert len(pictures) == 2 * CHUNK
    with Image.open(pictures[0]) as picture:
        assert picture.size == (64, 64)

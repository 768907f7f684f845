"""A tiny base model, six pictures and a channel that remembers: what trainer tests need."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import training_app.trainer.reporting as reporting
from tests.tiny import make_tiny_sd, make_tiny_sdxl
from training_app.trainer.cache import cache_latents, cache_prompts
from training_app.trainer.config import resolve_config
from training_app.trainer.dataset import make_examples
from training_app.trainer.ranks import Ranks
from training_app.trainer.reporting import Reporter
from training_app.trainer.request import TrainingRequest
from training_app.trainer.run import run
from training_app.trainer.training import Training

COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200), "green": (30, 160, 30)}
NAMES = list(COLOURS)
#: One sample picture instead of three, for runs whose samples nobody looks at.
ONE_SAMPLE = {"sample_prompts": ["zorp"], "control_prompt": ""}


class Recorder:
    """A channel that keeps what is sent and stops the run when told to."""

    def __init__(self, stop_at: int | None = None, how: str = "cancel") -> None:
        self.messages: list[dict[str, Any]] = []
        self.stop_at, self.how = stop_at, how

    def send(self, message_type: str, /, **fields: Any) -> None:
        self.messages.append({"type": message_type, **fields})

    def stop_requested(self) -> str | None:
        return self.how if self.stop_at is not None and self.step >= self.stop_at else None

    def aside_wanted(self) -> bool:
        return False

    def wait_aside(self) -> str | None:
        raise AssertionError("nobody has asked for it")

    def of(self, message_type: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["type"] == message_type]

    @property
    def step(self) -> int:
        steps = self.of("step")
        return steps[-1]["step"] if steps else 0

    @property
    def history(self) -> list[list[float]]:
        """Step, loss and learning rate of every step."""
        return [entry for message in self.of("step") for entry in message["history"]]

    @property
    def last(self) -> dict[str, Any]:
        return self.messages[-1]


@pytest.fixture(autouse=True)
def _every_step_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """How fast the machine is shall not decide at which step a run is stopped."""
    monkeypatch.setattr(reporting, "MESSAGES_PER_SECOND", 1e9)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_sd(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="session")
def sd2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_sd(tmp_path_factory.mktemp("sd2"), prediction_type="v_prediction")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Six entries of a manifest: a square on three backgrounds."""
    folder = tmp_path_factory.mktemp("images")
    entries = []
    for number in range(6):
        name = NAMES[number % 3]
        pixels = np.full((64, 64, 3), COLOURS[name], np.uint8)
        pixels[12 + 3 * number : 40 + 3 * number, 16:44] = (240, 220, 40)
        path = folder / f"{number}.png"
        Image.fromarray(pixels).save(path)
        entries.append(
            {
                "id": number,
                "path": str(path),
                "caption": f"a zorp on a {name} background",
                "pixel_sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
                "width": 64,
                "height": 64,
            }
        )
    return entries


def request_for(
    base_folder: Path,
    images: list[dict[str, Any]],
    folder: Path,
    config: dict[str, Any] | None = None,
    method: str = "lora",
) -> dict[str, Any]:
    """A request of twelve steps, with one sample picture unless others are asked for."""
    asked = {"trigger_word": "zorp", "max_train_steps": 12, "sample_inference_steps": 2}
    asked |= {"rank": 4, "alpha": 8, "sample_every_steps": 0} | ONE_SAMPLE | (config or {})
    resolved = resolve_config(
        asked,
        architecture="sd1",
        method=method,
        base_defaults={"width": 64},
        num_images=len(images),
    )
    return {
        "job_id": "3f2b",
        "base_folder": str(base_folder),
        "architecture": "sd1",
        "method": method,
        "config": resolved.as_dict(),
        "images": images,
        "trigger_word": "zorp",
        "output_folder": str(folder / "output"),
        "cache_folder": str(folder / "cache"),
        "resume_folder": None,
        "device": "cpu",
        "threads": 1,
        "checkpoint_seconds": 1000,
        "metadata": {"title": "My zorp", "base_name": "tiny", "base_sha256": "abc"},
    }


@dataclass(frozen=True)
class Finished:
    """A run of twelve steps that nothing disturbed."""

    recorder: Recorder
    output: Path
    cache: Path

    @property
    def weights(self) -> bytes:
        return (self.output / "adapter.safetensors").read_bytes()


@pytest.fixture(scope="session")
def finished(
    base_folder: Path, images: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    """A run that is done once for all tests; do not change its files."""
    folder = tmp_path_factory.mktemp("finished")
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reporting, "MESSAGES_PER_SECOND", 1e9)
        run(recorder, request_for(base_folder, images, folder))
    return Finished(recorder, folder / "output", folder / "cache")


@pytest.fixture
def make_request(
    base_folder: Path, images: list[dict[str, Any]], finished: Finished, tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    """Makes requests with a warm cache and one output folder; other values by name."""

    def make(
        config: dict[str, Any] | None = None, *, method: str = "lora", **changes: Any
    ) -> dict[str, Any]:
        request = request_for(base_folder, images, tmp_path, config, method)
        return request | {"cache_folder": str(finished.cache)} | changes

    return make


@pytest.fixture
def train(make_request: Callable[..., dict[str, Any]]) -> Callable[..., Recorder]:
    """Trains and returns what was said."""

    def do(
        config: dict[str, Any] | None = None, recorder: Recorder | None = None, **changes: Any
    ) -> Recorder:
        channel = recorder or Recorder()
        run(channel, make_request(config, **changes))
        return channel

    return do


def make_training(values: dict[str, Any], ranks: Ranks | None = None) -> Training:
    """A training that has not done a step; its pictures stand for those of the class as well."""
    request, reporter = TrainingRequest.from_dict(values), Reporter(Recorder())
    request = replace(request, device="cpu")
    examples = make_examples(request.images, request.config)
    others = examples if request.config.has_prior else []
    latents = cache_latents([*examples, *others], request, reporter)
    texts = [prompt for example in examples for prompt in example.prompts]
    prompts = cache_prompts(texts, request, torch.float32, reporter)
    return Training(request, examples, latents, prompts, others, ranks)


def first_gradients(values: dict[str, Any], ranks: Ranks | None = None) -> dict[str, torch.Tensor]:
    """What two steps change the weights by, and their losses, by step and name."""
    training = make_training(values, ranks)
    found: dict[str, torch.Tensor] = {}
    apply = training.update.apply

    def keep_and_apply() -> torch.Tensor:
        for name, parameter in training.learner.parameters.items():
            if parameter.grad is not None:
                found[f"{training.step}.{name}"] = parameter.grad.clone()
        return apply()

    training.update.apply = keep_and_apply  # type: ignore[method-assign]
    return {f"{step}.loss": training.do_step().loss for step in range(2)} | found

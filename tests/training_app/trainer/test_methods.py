"""Every method on every family: it trains, it resumes exactly, its files are what it shows."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

import training_app.trainer.reporting as reporting
from tests.training_app.trainer.conftest import Recorder, request_for
from training_app.trainer.files import read_tensors
from training_app.trainer.run import run

Train = Callable[..., Recorder]

STEPS = 12
#: How often a run is broken off, at steps that its name draws.
BREAKS = 5
DRAWING = {
    "max_train_steps": STEPS,
    "gradient_accumulation_steps": 2,
    "train_batch_size": 2,
    "flip": True,
    "caption_dropout": 0.3,
    "sample_inference_steps": 1,
    "sample_prompts": ["a zorp"],
    "control_prompt": "",
    "checkpoint_every_steps": 5,
}
PRIOR = {"instance_prompt": "a zorp", "class_prompt": "a dog", "num_class_images": 3}
#: Method and settings of a run, by what is special about it.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"dropout": 0.2}),
    "lora-average-prodigy": ("lora", {"use_ema": True, "optimizer": "prodigy"}),
    "lora-text": ("lora", {"train_text_encoder": True, "targets": "attention+feed_forward"}),
    "dora": ("lora", {"use_dora": True, "targets": "all"}),
    "dreambooth": ("dreambooth", PRIOR),
    "dreambooth-average-prodigy": (
        "dreambooth",
        PRIOR | {"tune": "unet", "use_ema": True, "optimizer": "prodigy"},
    ),
    "dreambooth-text": (
        "dreambooth",
        PRIOR | {"tune": "unet", "train_text_encoder": True, "learning_rate": 1e-4},
    ),
    "full-prodigy": ("full", {"use_ema": False, "optimizer": "prodigy"}),
    "full-text-average": (
        "full",
        {"use_ema": True, "train_text_encoder": True, "learning_rate": 1e-4},
    ),
}


def _bits(outputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """All tensors of what a run has left, by file and name."""
    path = Path(outputs["weights"])
    files = [path] if path.is_file() else sorted(path.rglob("*.safetensors"))
    return {
        f"{file.relative_to(path)}/{name}": value
        for file in files
        for name, value in read_tensors(file)[0].items()
    }


def _run(request: dict[str, Any], recorder: Recorder | None = None) -> Recorder:
    recorder = recorder or Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reporting, "MESSAGES_PER_SECOND", 1e9)
        run(recorder, request)
    return recorder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("methods")


@pytest.mark.parametrize("case", CASES)
def test_a_run_broken_off_ends_as_an_unbroken_one(
    case: str, base_folder: Path, images: list[dict[str, Any]], folder: Path
) -> None:
    method, config = CASES[case]

    def request(name: str, **changes: Any) -> dict[str, Any]:
        made = request_for(base_folder, images, folder / case, DRAWING | config, method)
        output = folder / case / name
        return made | {"output_folder": str(output), "cache_folder": str(folder)} | changes

    unbroken = _run(request("unbroken"))
    expected = _bits(unbroken.last["outputs"])
    history = []
    resume: dict[str, Any] = {}
    for step in sorted(random.Random(case).sample(range(1, STEPS), BREAKS)):
        # Nothing but the step decides, whatever state the libraries are in.
        torch.manual_seed(step)
        history += _run(request("broken", **resume), Recorder(step, "pause")).history
        resume = {"resume_folder": str(folder / case / "broken" / "checkpoints")}
    last = _run(request("broken", **resume))
    assert last.of("note")[-1]["code"] == "resumed"
    assert history + last.history == unbroken.history
    found = _bits(last.last["outputs"])
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("case", "family"),
    [
        ("lora", "sd2"),
        ("lora", "sdxl"),
        ("lora-text", "sdxl"),
        ("dreambooth", "sdxl"),
        ("dreambooth-text", "sdxl"),
        ("full-prodigy", "sd2"),
        ("full-text-average", "sdxl"),
    ],
)
def test_every_family_trains_and_shows_what_its_files_make(
    case: str, family: str, train: Train, request: pytest.FixtureRequest
) -> None:
    method, config = CASES[case]
    base = request.getfixturevalue(f"{family}_folder")
    recorder = train(
        DRAWING | config | {"sample_inference_steps": 2},
        method=method,
        architecture=family,
        base_folder=str(base),
    )
    assert recorder.last["type"] == "done"
    losses = [entry[1] for entry in recorder.history]
    assert len(losses) == STEPS and all(np.isfinite(losses))
    outputs = recorder.last["outputs"]
    is_whole = method == "full" or config.get("tune") == "unet"
    assert outputs["layout"] == ("folder" if is_whole else "file")
    assert Path(outputs["weights"]).is_dir() == is_whole


def test_a_whole_model_is_a_complete_folder_for_plain_diffusers(
    train: Train, base_folder: Path, tmp_path: Path
) -> None:
    method, config = CASES["full-text-average"]
    config = config | {"learning_rate": 3e-3, "text_encoder_learning_rate": 3e-3, "ema_decay": 0.5}
    recorder = train(DRAWING | config | {"sample_inference_steps": 2}, method=method)
    outputs = recorder.last["outputs"]
    assert (outputs["layout"], outputs["step"], outputs["kohya"]) == ("folder", STEPS, None)
    model = Path(outputs["weights"])
    index = json.loads((model / "model_index.json").read_text())
    assert index["safety_checker"] == [None, None]
    sample = recorder.of("sample")[0]
    pipeline = DiffusionPipeline.from_pretrained(model, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    options = {
        "width": 64,
        "height": 64,
        "num_inference_steps": 2,
        "guidance_scale": 7.5,
    }
    picture = pipeline(
        sample["prompt"], generator=torch.Generator().manual_seed(sample["seed"]), **options
    ).images[0]
    with Image.open(sample["path"]) as shown:
        assert np.abs(np.asarray(picture, int) - np.asarray(shown, int)).max() <= 1
    base = DiffusionPipeline.from_pretrained(base_folder, local_files_only=True)
    for component in ("unet", "text_encoder"):
        trained = getattr(pipeline, component).state_dict()
        before = getattr(base, component).state_dict()
        assert any(not torch.equal(trained[name], before[name]) for name in before)
    # What did not learn is the base's own file.
    vae = "vae/diffusion_pytorch_model.safetensors"
    assert (model / vae).samefile(base_folder / vae)
    checkpoint = Path(recorder.of("checkpoint")[-1]["folder"])
    names = {entry["name"] for entry in recorder.of("checkpoint")[-1]["files"]}
    assert {
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "masters.safetensors",
    } <= names
    # A checkpoint holds what would be kept: the average, not the weights that learn.
    stored = (checkpoint / "unet/diffusion_pytorch_model.safetensors").read_bytes()
    assert stored == (model / "unet/diffusion_pytorch_model.safetensors").read_bytes()
    masters = read_tensors(checkpoint / "masters.safetensors")[0]
    average = read_tensors(checkpoint / "unet/diffusion_pytorch_model.safetensors")[0]
    assert not torch.equal(masters["unet.conv_in.weight"], average["conv_in.weight"])


def test_computing_activations_twice_changes_nothing(train: Train, tmp_path: Path) -> None:
    config = DRAWING | {"dropout": 0.3, "train_text_encoder": True, "max_train_steps": 3}
    twice, once = (
        train(
            config | {"gradient_checkpointing": wish},
            output_folder=str(tmp_path / wish),
        )
        for wish in ("on", "off")
    )
    assert twice.history == once.history
    bits, expected = _bits(twice.last["outputs"]), _bits(once.last["outputs"])
    assert all(torch.equal(bits[name], expected[name]) for name in expected)


@pytest.mark.parametrize("case", ["lora-text", "full-text-average"])
def test_bfloat16_trains_text_encoders_and_whole_networks(train: Train, case: str) -> None:
    method, config = CASES[case]
    changes = {"mixed_precision": "bf16", "max_train_steps": 2}
    assert train(DRAWING | config | changes, method=method).last["type"] == "done"


def test_a_prompt_of_ones_own_makes_samples_that_follow_the_text_encoder(train: Train) -> None:
    config = {"train_text_encoder": True, "text_encoder_learning_rate": 0.05, "rank": 16}
    config |= {"learning_rate": 1e-7, "sample_every_steps": STEPS // 2}
    recorder = train(DRAWING | config)
    first, second = (Path(sample["path"]).read_bytes() for sample in recorder.of("sample"))
    assert first != second

"""Loading base models from folders: equal to diffusers, safetensors only, quiet."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline

from models_app import loading
from models_app.loading import (
    LoadingError,
    load_components,
    load_noise_scheduler,
    load_pipeline,
)
from tests.tiny import make_tiny_sd


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_sd(tmp_path_factory.mktemp("base"))


@pytest.fixture
def copy(base_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base_folder, tmp_path / "copy"))


def test_the_pipeline_makes_the_picture_of_plain_diffusers(base_folder: Path) -> None:
    plain = StableDiffusionPipeline.from_pretrained(
        base_folder, local_files_only=True, safety_checker=None
    )
    plain.set_progress_bar_config(disable=True)

    def picture(pipeline: StableDiffusionPipeline) -> np.ndarray:
        pixels: np.ndarray = pipeline(
            "a zorp",
            negative_prompt="red",
            num_inference_steps=3,
            output_type="np",
            generator=torch.Generator().manual_seed(1),
        ).images
        return pixels

    assert (picture(load_pipeline(base_folder, "sd1")) == picture(plain)).all()


def test_only_what_is_asked_for_is_loaded(base_folder: Path) -> None:
    parts = load_components(base_folder, "sd1", only=("vae", "scheduler"))
    assert set(parts) == {"vae", "scheduler"}
    assert set(load_components(base_folder, "sd1")) == {
        "unet",
        "vae",
        "text_encoder",
        "tokenizer",
        "scheduler",
    }


def test_networks_come_ready_to_run(base_folder: Path) -> None:
    unet = load_components(base_folder, "sd1", only=("unet",), dtype=torch.bfloat16)["unet"]
    assert unet.dtype == torch.bfloat16
    assert not unet.training
    assert not any(parameter.requires_grad for parameter in unet.parameters())


def test_noise_schedulers_keep_the_bases_configuration(base_folder: Path) -> None:
    assert isinstance(load_noise_scheduler(base_folder), DDIMScheduler)
    for_training = load_components(base_folder, "sd1", only=("scheduler",))["scheduler"]
    assert isinstance(for_training, DDPMScheduler)
    assert for_training.config.beta_schedule == "scaled_linear"
    assert for_training.config.prediction_type == "epsilon"


def test_pickles_are_never_opened(copy: Path) -> None:
    (copy / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    (copy / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(LoadingError, match="safetensors"):
        load_pipeline(copy, "sd1")


def test_a_folder_cannot_choose_what_code_runs(copy: Path) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    index["scheduler"] = ["subprocess", "Popen"]
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(LoadingError, match="Popen"):
        load_pipeline(copy, "sd1")


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "scheduler/scheduler_config.json",
    ],
)
@pytest.mark.parametrize("damage", ["missing", "garbage"])
def test_a_broken_folder_is_an_error_of_its_own(copy: Path, name: str, damage: str) -> None:
    if damage == "missing":
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(b"garbage")
    with pytest.raises(LoadingError):
        load_pipeline(copy, "sd1")


def test_a_model_of_another_family_is_refused(base_folder: Path) -> None:
    for name in ("sdxl", "svd"):
        with pytest.raises(LoadingError):
            load_pipeline(base_folder, name)


def test_loading_is_quiet_and_needs_no_django(base_folder: Path) -> None:
    check = (
        "import sys; from pathlib import Path; from models_app.loading import load_pipeline; "
        "load_pipeline(Path(sys.argv[1]), 'sd1'); print('django' in sys.modules)"
    )
    command = [sys.executable, "-W", "error", "-c", check, str(base_folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"
    assert done.stderr == ""


def test_memory_that_runs_out_is_no_fault_of_the_file(
    base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 GiB")

    monkeypatch.setattr(loading, "_load_part", full)
    with pytest.raises(RuntimeError, match="allocate"):
        load_components(base_folder, "sd1", only=("vae",))

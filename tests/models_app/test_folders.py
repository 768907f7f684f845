"""What diffusers folders are taken and refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from models_app.folders import choose_files, inspect_folder
from models_app.inspection import InspectionError
from tests.models_app.fixture_folders import write_json, write_pipeline, write_safetensors

UNET = "unet/diffusion_pytorch_model"


@pytest.mark.parametrize(
    ("architecture", "category", "size"),
    [
        ("sd1", "image", (64, 64)),
        ("sd2", "image", (64, 64)),
        ("sdxl", "image", (64, 64)),
        ("svd", "video", (1024, 576)),
    ],
)
def test_recognises_each_family(
    tmp_path: Path, architecture: str, category: str, size: tuple[int, int]
) -> None:
    report = inspect_folder(write_pipeline(tmp_path, architecture))
    assert (report.architecture, report.category) == (architecture, category)
    assert (report.width, report.height) == size
    assert report.prediction_type == "epsilon"


@pytest.mark.parametrize("architecture", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize("suffix", ["Pipeline", "InpaintPipeline"])
def test_the_unet_tells_what_is_for_inpainting(
    tmp_path: Path, architecture: str, channels: int, suffix: str
) -> None:
    name = ("StableDiffusionXL" if architecture == "sdxl" else "StableDiffusion") + suffix
    report = inspect_folder(write_pipeline(tmp_path, architecture, channels=channels, name=name))
    assert report.architecture == architecture
    assert report.is_inpainting is (channels == 9)
    assert report.model_index["_class_name"] == name


def test_reads_the_prediction_type(tmp_path: Path) -> None:
    write_pipeline(tmp_path, "sd2")
    write_json(tmp_path / "scheduler/scheduler_config.json", {"prediction_type": "v_prediction"})
    assert inspect_folder(tmp_path).prediction_type == "v_prediction"


def test_recognises_a_real_pipeline_of_the_library(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.tiny import make_tiny_sd

    report = inspect_folder(make_tiny_sd(tmp_path / "tiny"))
    assert (report.architecture, report.width) == ("sd1", 64)
    assert {file.target.split("/")[0] for file in report.files} == {
        "unet", "vae", "text_encoder", "tokenizer", "scheduler",
    }  # fmt: skip


def test_only_needed_files_are_chosen(tmp_path: Path) -> None:
    write_pipeline(tmp_path)
    (tmp_path / f"{UNET}.bin").write_bytes(pickle.dumps({}))
    (tmp_path / "v1-5-pruned.ckpt").write_bytes(pickle.dumps({}))
    write_safetensors(tmp_path / f"{UNET}.fp16.safetensors", {"x": (1,)})
    write_safetensors(tmp_path / f"{UNET}.non_ema.safetensors", {"x": (1,)})
    write_json(tmp_path / "safety_checker/config.json", {})
    (tmp_path / "unet/evil.py").write_text("raise SystemExit")
    targets = {file.target for file in inspect_folder(tmp_path).files}
    assert f"{UNET}.safetensors" in targets
    assert {Path(name).suffix for name in targets} == {".safetensors", ".json", ".txt"}
    assert not any("fp16" in name or "non_ema" in name or "safety" in name for name in targets)


def test_components_that_are_not_kept_are_marked_absent(tmp_path: Path) -> None:
    write_pipeline(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    write_json(tmp_path / "model_index.json", index)
    kept = inspect_folder(tmp_path).model_index
    assert kept["safety_checker"] == [None, None]
    assert kept["requires_safety_checker"] is False
    assert kept["unet"] == ["diffusers", "UNet2DConditionModel"]


def test_half_precision_variants_take_the_plain_name(tmp_path: Path) -> None:
    write_pipeline(tmp_path)
    write_safetensors(tmp_path / f"{UNET}.fp16.safetensors", {"conv_in.weight": (4, 4, 3, 3)})
    assert _source_of_unet(tmp_path, half=False) == f"{UNET}.safetensors"
    assert _source_of_unet(tmp_path, half=True) == f"{UNET}.fp16.safetensors"
    (tmp_path / f"{UNET}.safetensors").unlink()
    assert _source_of_unet(tmp_path, half=False) == f"{UNET}.fp16.safetensors"


def _source_of_unet(folder: Path, *, half: bool) -> str:
    files = inspect_folder(folder, half_precision=half).files
    return next(file.source for file in files if file.target == f"{UNET}.safetensors")


def test_shards_come_with_their_index(tmp_path: Path) -> None:
    write_pipeline(tmp_path)
    (tmp_path / f"{UNET}.safetensors").unlink()
    shard = "diffusion_pytorch_model-00001-of-00001.safetensors"
    write_safetensors(tmp_path / "unet" / shard, {"conv_in.weight": (4, 4, 3, 3)})
    index = tmp_path / f"{UNET}.safetensors.index.json"
    write_json(index, {"weight_map": {"conv_in.weight": shard}})
    targets = {file.target for file in inspect_folder(tmp_path).files}
    assert {f"unet/{shard}", f"{UNET}.safetensors.index.json"} <= targets
    write_json(index, {"weight_map": {"conv_in.weight": "../../etc-00001-of-00001.safetensors"}})
    _refused(tmp_path, "files_missing")


def _refused(folder: Path, code: str) -> str:
    with pytest.raises(InspectionError) as caught:
        inspect_folder(folder)
    assert caught.value.code == code
    return caught.value.detail


def _no_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def _other_pipeline(folder: Path) -> None:
    write_json(folder / "model_index.json", {"_class_name": "FluxPipeline"})


def _only_pickles(folder: Path) -> None:
    (folder / f"{UNET}.safetensors").rename(folder / f"{UNET}.bin")


def _renamed_pickle(folder: Path) -> None:
    (folder / f"{UNET}.safetensors").write_bytes(pickle.dumps({}))


def _no_text_encoder(folder: Path) -> None:
    (folder / "text_encoder/config.json").unlink()


def _no_weights(folder: Path) -> None:
    (folder / f"{UNET}.safetensors").unlink()


def _no_vocabulary(folder: Path) -> None:
    (folder / "tokenizer/merges.txt").unlink()


def _editing(folder: Path) -> None:
    write_pipeline(folder, channels=8)


def _clips_with_masks(folder: Path) -> None:
    write_pipeline(folder, "svd", channels=9)


def _other_weights(folder: Path) -> None:
    write_safetensors(folder / f"{UNET}.safetensors", {"conv_in.weight": (4, 9, 3, 3)})


def _other_text_encoder(folder: Path) -> None:
    write_json(folder / "text_encoder/config.json", {"hidden_size": 768})


def _nan(folder: Path) -> None:
    (folder / "scheduler/scheduler_config.json").write_text('{"beta_start": NaN}')


def _unknown_prediction(folder: Path) -> None:
    write_json(folder / "scheduler/scheduler_config.json", {"prediction_type": "flow"})


def _no_sample_size(folder: Path) -> None:
    write_json(folder / "unet/config.json", {"in_channels": 4, "cross_attention_dim": 32})


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (_no_index, "not_diffusers"),
        (_other_pipeline, "unsupported_pipeline"),
        (_only_pickles, "pickle_weights"),
        (_renamed_pickle, "pickle_weights"),
        (_no_text_encoder, "files_missing"),
        (_no_weights, "files_missing"),
        (_no_vocabulary, "files_missing"),
        (_editing, "unsupported_pipeline"),
        (_clips_with_masks, "unsupported_pipeline"),
        (_other_weights, "weights_invalid"),
        (_other_text_encoder, "config_invalid"),
        (_nan, "config_invalid"),
        (_unknown_prediction, "config_invalid"),
        (_no_sample_size, "config_invalid"),
    ],
)
def test_spoiled_folders_are_refused_with_a_sentence(
    tmp_path: Path, spoil: Callable[[Path], None], code: str
) -> None:
    write_pipeline(tmp_path)
    spoil(tmp_path)
    assert _refused(tmp_path, code).endswith(".")


def test_names_elsewhere_in_a_repository_are_ignored() -> None:
    with pytest.raises(InspectionError, match=r"unet/config\.json is missing"):
        choose_files(["a/unet/config.json", "unet.json"], ("unet",))

"""Caches of latents and prompts: content, reuse, damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import training_app.trainer.cache as cache
from models_app.loading import load_components
from tests.training_app.trainer.conftest import Recorder
from training_app.trainer.buckets import Bucket
from training_app.trainer.cache import LatentBank, PromptBank, cache_latents, cache_prompts
from training_app.trainer.dataset import make_examples, read_pixels
from training_app.trainer.reporting import Reporter, StopRun
from training_app.trainer.request import TrainingRequest

SQUARE = Bucket(64, 64)
MakeRequest = Callable[..., dict[str, Any]]
Loads = list[tuple[str, ...]]


@pytest.fixture
def make_request(make_request: MakeRequest, tmp_path: Path) -> MakeRequest:
    """Requests whose cache is cold."""

    def make(config: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
        return make_request(config, cache_folder=str(tmp_path / "cache"), **changes)

    return make


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    """The groups of networks that filling a cache has loaded."""
    seen: Loads = []

    def counting(*arguments: Any, only: tuple[str, ...], **others: Any) -> dict[str, Any]:
        seen.append(tuple(only))
        return load_components(*arguments, only=only, **others)

    monkeypatch.setattr(cache, "load_components", counting)
    return seen


def _fill(
    request: dict[str, Any], channel: Recorder | None = None
) -> tuple[LatentBank, PromptBank]:
    parsed = TrainingRequest.from_dict(request)
    reporter = Reporter(channel or Recorder())
    examples = make_examples(parsed.images, parsed.config)
    latents = cache_latents(examples, parsed, reporter)
    prompts = cache_prompts(
        [example.prompt for example in examples], parsed, torch.float32, reporter
    )
    return latents, prompts


def test_latents_are_the_posterior_of_the_vae(make_request: MakeRequest, base_folder: Path) -> None:
    latents, _ = _fill(make_request())
    vae = load_components(base_folder, "sd1", only=("vae",))["vae"]
    request = TrainingRequest.from_dict(make_request())
    example = make_examples(request.images, request.config)[2]
    pixels = read_pixels(example, example.variants[0])
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
    scale = vae.config.scaling_factor
    (row,) = latents.rows[2]
    assert torch.equal(latents.mean[SQUARE][row], posterior.mean[0] * scale)
    assert torch.equal(latents.std[SQUARE][row], posterior.std[0] * scale)
    assert latents.std[SQUARE].min() > 0


def test_a_second_run_loads_no_network(make_request: MakeRequest, loads: Loads) -> None:
    first_latents, first_prompts = _fill(make_request())
    assert loads == [("vae",), ("text_encoder", "tokenizer")]
    second_latents, second_prompts = _fill(make_request())
    assert len(loads) == 2
    assert torch.equal(first_latents.mean[SQUARE], second_latents.mean[SQUARE])
    for name, tensor in first_prompts.tensors.items():
        assert torch.equal(tensor, second_prompts.tensors[name])


def test_a_damaged_file_is_made_again_and_a_rebuilt_cache_is_bit_equal(
    make_request: MakeRequest, tmp_path: Path, loads: Loads
) -> None:
    before, _ = _fill(make_request())
    files = sorted((tmp_path / "cache" / "latents").iterdir())
    contents = {path: path.read_bytes() for path in files}
    files[0].write_bytes(b"\0" * 50)
    files[1].unlink()
    files[2].write_bytes(contents[files[2]][:-20])
    after, _ = _fill(make_request())
    assert torch.equal(before.mean[SQUARE], after.mean[SQUARE])
    assert {path: path.read_bytes() for path in files} == contents
    assert loads.count(("vae",)) == 2


def test_mirrored_pictures_are_variants(make_request: MakeRequest) -> None:
    latents, _ = _fill(make_request({"flip": True}))
    assert latents.rows == tuple(range(start, start + 2) for start in range(0, 12, 2))
    assert latents.mean[SQUARE].shape == (12, 4, 8, 8)
    assert not torch.equal(latents.mean[SQUARE][0::2], latents.mean[SQUARE][1::2])


def test_every_crop_is_cached_once_and_says_where_it_was_cut(
    make_request: MakeRequest,
    images: list[dict[str, Any]],
    sdxl_folder: Path,
    tmp_path: Path,
    loads: Loads,
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 160, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    wide = images[0] | {"path": str(tmp_path / "wide.png"), "pixel_sha256": "wide", "width": 160}
    config = {"crop": "random", "crop_variants": 3, "flip": True}
    changes = {"images": [wide, images[1]], "base_folder": str(sdxl_folder)}
    changes |= {"architecture": "sdxl"}
    latents, _ = _fill(make_request(config, **changes))
    # The square picture leaves no room: it has one crop.
    assert latents.rows == (range(6), range(6, 8))
    sizes = latents.sizes[SQUARE]
    assert sizes.shape == (8, 6)
    assert sizes[6:].tolist() == [[64, 64, 0, 0, 64, 64]] * 2
    lefts = sizes[:6, 3].tolist()
    assert len(set(lefts[:3])) == 3 and all(0 <= left <= 96 for left in lefts)
    assert [96 - left for left in lefts[:3]] == lefts[3:]
    assert sizes[0].tolist() == [64, 160, 0, lefts[0], 64, 64]
    first = latents.mean[SQUARE]
    # Another seed trains on the same crops.
    again, _ = _fill(make_request(config | {"seed": 5}, **changes))
    assert torch.equal(again.mean[SQUARE], first)
    assert loads.count(("vae",)) == 1


def test_a_changed_vae_is_another_cache(
    make_request: MakeRequest, base_folder: Path, tmp_path: Path, loads: Loads
) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(base_folder, other)
    config = other / "vae" / "config.json"
    config.write_text(config.read_text().replace("0.18215", "0.5"))
    first, _ = _fill(make_request())
    second, _ = _fill(make_request(base_folder=str(other)))
    assert loads.count(("vae",)) == 2
    torch.testing.assert_close(second.mean[SQUARE], first.mean[SQUARE] / 0.18215 * 0.5)


def test_prompts_are_those_of_the_pipeline_and_the_empty_one_is_among_them(
    make_request: MakeRequest, base_folder: Path
) -> None:
    from models_app.loading import load_pipeline

    _, prompts = _fill(make_request())
    pipeline = load_pipeline(base_folder, "sd1")
    for prompt in ("", "a zorp on a red background"):
        with torch.no_grad():
            expected = pipeline.encode_prompt(prompt, "cpu", 1, False)[0]
        assert torch.equal(prompts.of(prompt).tensors["prompt_embeds"], expected)
    assert len(prompts.places) == 4
    picked = prompts.pick(torch.tensor([1, 0, 1])).tensors["prompt_embeds"]
    assert torch.equal(picked[0], picked[2]) and not torch.equal(picked[0], picked[1])


def test_filling_the_cache_can_be_stopped(make_request: MakeRequest) -> None:
    with pytest.raises(StopRun) as stop:
        _fill(make_request(), Recorder(stop_at=0))
    assert stop.value.how == "cancel"

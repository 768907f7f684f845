"""The committed weights: small, plain, fast, and as good as their card says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors import safe_open

from models_app.starter.export import MAXIMUM_BYTES, WEIGHTS_FOLDER, folder_bytes, read_facts
from models_app.starter.score import (
    LINES,
    generate,
    load_pipeline,
    reaches_lines,
    score_held_out,
    score_unknown_nouns,
)
from models_app.starter.vae_training import measure_psnr, passes_gate


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads that wait for each other at every operation crawl on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pipeline(_one_thread: None) -> StableDiffusionPipeline:
    return load_pipeline(WEIGHTS_FOLDER)


def test_weights_are_small_half_precision_safetensors() -> None:
    assert folder_bytes(WEIGHTS_FOLDER) <= MAXIMUM_BYTES
    files = list(WEIGHTS_FOLDER.rglob("*.safetensors"))
    assert len(files) == 3
    for path in files:
        with safe_open(path, "pt") as file:
            assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}  # noqa: SIM118
    assert not [
        path
        for path in WEIGHTS_FOLDER.rglob("*")
        if path.suffix in (".bin", ".pt", ".ckpt", ".pkl")
    ]


def test_plain_diffusers_loads_and_runs_it_without_a_warning() -> None:
    code = (
        "import sys; from diffusers import StableDiffusionPipeline as P\n"
        "p = P.from_pretrained(sys.argv[1]); p.set_progress_bar_config(disable=True)\n"
        "print(p('a red circle on a blue background', num_inference_steps=2).images[0].size)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(WEIGHTS_FOLDER)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(64, 64)"
    # Progress bars aside, the one remark allowed is transformers' own about torchvision.
    said = [
        line for line in done.stderr.replace("\r", "\n").splitlines() if line and "it/s" not in line
    ]
    assert [line for line in said if "torchvision" not in line and "?it" not in line] == []


def test_it_is_a_genuine_stable_diffusion(pipeline: StableDiffusionPipeline) -> None:
    assert pipeline.vae_scale_factor == 8
    assert pipeline.unet.config.sample_size * 8 == 64
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    index = json.loads((WEIGHTS_FOLDER / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["requires_safety_checker"] is False


def test_vae_keeps_what_it_has_never_seen(pipeline: StableDiffusionPipeline) -> None:
    assert passes_gate(measure_psnr(pipeline.vae, 32))


def test_held_out_prompts_reach_the_lines(pipeline: StableDiffusionPipeline) -> None:
    scores = score_held_out(pipeline, 100)
    assert all(scores[part] >= least for part, least in LINES.items()), scores


def test_made_up_words_leave_the_background_right(pipeline: StableDiffusionPipeline) -> None:
    assert score_unknown_nouns(pipeline, 40) >= 90


def test_the_card_tells_scores_that_reach_the_lines() -> None:
    facts = read_facts(WEIGHTS_FOLDER)
    assert facts["status"] == "finished."
    assert facts["scores"]["prompts"] == 100
    assert reaches_lines(facts["scores"])
    card = (WEIGHTS_FOLDER / "README.md").read_text()
    assert f"colour {facts['scores']['colour']} %" in card


def test_a_seed_paints_the_same_picture_twice(pipeline: StableDiffusionPipeline) -> None:
    first, second = (
        generate(pipeline, ["a red star on a white background"], 5)[0] for _ in range(2)
    )
    assert np.array_equal(np.asarray(first), np.asarray(second))


def test_unknown_words_have_embeddings_of_their_own(pipeline: StableDiffusionPipeline) -> None:
    ids = pipeline.tokenizer(["zorp", "bromp"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        embeds = pipeline.text_encoder(ids).last_hidden_state
    assert not torch.allclose(embeds[0], embeds[1], atol=1e-2)


def test_drawing_and_judging_import_no_torch() -> None:
    code = (
        "import sys, models_app.starter.world, models_app.starter.wide_world\n"
        "from models_app.starter import creatures, glyphs, judge\n"
        "assert not {'torch', 'django', 'diffusers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

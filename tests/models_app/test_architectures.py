"""What a family is, and that its prompts are encoded as diffusers encodes them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
import transformers

from models_app.architectures import (
    ARCHITECTURES,
    Conditioning,
    denoiser_arguments,
    encode_prompts,
    get_architecture,
)
from models_app.loading import load_components, load_pipeline
from tests.tiny import make_tiny_sd, make_tiny_sdxl

PROMPTS = ["a zorp on a red background", "", "日本語 é", "a very long prompt " * 40]


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_sd(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("name", ["sd1", "sd2"])
@pytest.mark.parametrize("clip_skip", [None, 1])
def test_prompts_equal_those_of_the_plain_pipeline(
    base_folder: Path, name: str, clip_skip: int | None
) -> None:
    pipeline = load_pipeline(base_folder, name)
    components = {"tokenizer": pipeline.tokenizer, "text_encoder": pipeline.text_encoder}
    if clip_skip is not None:
        # The pipeline looks for the norm where transformers 4 had it.
        pipeline.text_encoder.__dict__["text_model"] = pipeline.text_encoder
    for prompt in PROMPTS:
        with torch.no_grad():
            ours = encode_prompts(ARCHITECTURES[name], components, [prompt], clip_skip=clip_skip)
            plain, _ = pipeline.encode_prompt(prompt, "cpu", 1, False, clip_skip=clip_skip)
        assert torch.equal(ours.tensors["prompt_embeds"], plain)


def test_clip_skip_works_where_the_norm_lies_on_the_encoder(base_folder: Path) -> None:
    components = load_components(base_folder, "sd1", only=("tokenizer", "text_encoder"))
    family = ARCHITECTURES["sd1"]
    with torch.no_grad():
        last = encode_prompts(family, components, ["a zorp"]).tensors["prompt_embeds"]
        same = encode_prompts(family, components, ["a zorp"], clip_skip=0).tensors["prompt_embeds"]
        other = encode_prompts(family, components, ["a zorp"], clip_skip=1).tensors["prompt_embeds"]
    assert torch.equal(last, same)
    assert not torch.equal(last, other)


def test_prompts_of_a_batch_stay_apart(base_folder: Path) -> None:
    components = load_components(base_folder, "sd1", only=("tokenizer", "text_encoder"))
    with torch.no_grad():
        conditioning = encode_prompts(ARCHITECTURES["sd1"], components, PROMPTS)
    arguments = denoiser_arguments(ARCHITECTURES["sd1"], conditioning)
    assert set(arguments) == {"encoder_hidden_states"}
    assert arguments["encoder_hidden_states"].shape == (4, 77, 32)


def test_an_attention_mask_is_used_where_the_encoder_asks_for_it(base_folder: Path) -> None:
    pipeline = load_pipeline(base_folder, "sd2")
    pipeline.text_encoder.config.use_attention_mask = True
    components = {"tokenizer": pipeline.tokenizer, "text_encoder": pipeline.text_encoder}
    with torch.no_grad():
        ours = encode_prompts(ARCHITECTURES["sd2"], components, ["a zorp"])
        plain, _ = pipeline.encode_prompt("a zorp", "cpu", 1, False)
    assert torch.equal(ours.tensors["prompt_embeds"], plain)


@pytest.fixture(scope="module")
def sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.mark.parametrize("clip_skip", [None, 1])
def test_prompts_of_two_encoders_equal_those_of_the_plain_pipeline(
    sdxl_folder: Path, clip_skip: int | None
) -> None:
    pipeline = load_pipeline(sdxl_folder, "sdxl")
    family = ARCHITECTURES["sdxl"]
    assert family.tokenizers == ("tokenizer", "tokenizer_2")
    for prompt in PROMPTS:
        with torch.no_grad():
            ours = encode_prompts(family, pipeline.components, [prompt], clip_skip=clip_skip)
            plain, _, pooled, _ = pipeline.encode_prompt(
                prompt, device="cpu", do_classifier_free_guidance=False, clip_skip=clip_skip
            )
        assert torch.equal(ours.tensors["prompt_embeds"], plain)
        assert torch.equal(ours.tensors["pooled_prompt_embeds"], pooled)


def test_sizes_become_the_numbers_of_the_plain_pipeline(sdxl_folder: Path) -> None:
    pipeline = load_pipeline(sdxl_folder, "sdxl")
    family = ARCHITECTURES["sdxl"]
    assert family.size_ids is not None
    ours = family.size_ids((640, 480), (30, 20), (96, 64))
    # The pipeline speaks of heights first.
    plain = pipeline._get_add_time_ids((480, 640), (20, 30), (64, 96), torch.float32, 32)
    assert list(ours) == plain[0].tolist()
    tensors = {"prompt_embeds": 1, "pooled_prompt_embeds": 2, "time_ids": 3}
    arguments = denoiser_arguments(family, Conditioning(tensors))
    assert arguments["added_cond_kwargs"] == {"text_embeds": 2, "time_ids": 3}


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_class_that_a_family_names_exists(name: str) -> None:
    family = get_architecture(name)
    libraries = {"diffusers": diffusers, "transformers": transformers}
    assert family.name == name
    assert hasattr(diffusers, family.pipeline)
    for library, class_name in family.classes.values():
        assert hasattr(libraries[library], class_name)
    assert set(family.text_encoders) <= set(family.classes)
    if family.trainable:
        assert family.encode is not None and family.condition is not None


def test_what_a_family_cannot_do_is_an_error() -> None:
    with pytest.raises(ValueError, match="flux"):
        get_architecture("flux")
    with pytest.raises(ValueError, match="pipeline"):
        encode_prompts(ARCHITECTURES["svd"], {}, ["a zorp"])


def test_reading_the_table_loads_no_torch() -> None:
    check = "import sys, models_app.architectures; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

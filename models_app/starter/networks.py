"""The starter model's networks, tokenizer and noise schedule, untrained.

The sizes stand here alone. They are chosen so that the fp16 weights of all three
networks stay under 20 MB and a 64-pixel picture is an 8x8 latent of 16 channels.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from models_app.starter.world import RESOLUTION, vocabulary

LATENT_CHANNELS = 16
TEXT_WIDTH = 128
MAXIMUM_TOKENS = 77
START_TOKEN, END_TOKEN = "<|startoftext|>", "<|endoftext|>"

NOISE_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def make_vae() -> AutoencoderKL:
    """The 8x autoencoder; without attention, which costs much and gains little at 8x8."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 48, 64, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=RESOLUTION,
        mid_block_add_attention=False,
    )


def make_unet() -> UNet2DConditionModel:
    """The noise predictor: two levels, each with cross-attention to the caption."""
    return UNet2DConditionModel(
        sample_size=RESOLUTION // 8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(96, 160),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=16,
    )


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The caption reader: two layers of width 128, as long as SD 1.x's."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAXIMUM_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_noise_scheduler() -> DDIMScheduler:
    """The noise schedule that Stable Diffusion 1.x was trained with."""
    return DDIMScheduler(**NOISE_SCHEDULE)


def byte_units() -> list[str]:
    """The 256 printable characters that stand for bytes in a CLIP vocabulary.

    Source: Radford et al. 2019 (GPT-2), section 2.2: bytes that print stand for
    themselves, the others are moved above U+0100.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def _merge(pieces: list[str], merges: dict[tuple[str, str], int]) -> list[str]:
    """Join neighbours by the merge of lowest rank until none applies: what a BPE reader does."""
    while True:
        pairs = [pair for pair in pairwise(pieces) if pair in merges]
        if not pairs:
            return pieces
        best = min(pairs, key=merges.__getitem__)
        joined: list[str] = []
        for piece in pieces:
            if joined and (joined[-1], piece) == best:
                joined[-1] += piece
            else:
                joined.append(piece)
        pieces = joined


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write a byte-level BPE vocabulary in which each word of the language is one token.

    Any other word falls apart into bytes, so that every name somebody makes up has
    token ids of its own.

    Args:
        folder: Where ``vocab.json``, ``merges.txt`` and the configuration go.
    """
    units = byte_units()
    tokens = units + [f"{unit}</w>" for unit in units]
    merges: dict[tuple[str, str], int] = {}
    for word in vocabulary():
        # What earlier words' merges make of this word comes first, as it will when reading;
        # later merges cannot disturb earlier words, whose own always rank before them.
        pieces = _merge([*word[:-1], f"{word[-1]}</w>"], merges)
        while len(pieces) > 1:
            merges[pieces[0], pieces[1]] = len(merges)
            pieces[:2] = [pieces[0] + pieces[1]]
    tokens += dict.fromkeys(first + second for first, second in merges)
    tokens += [START_TOKEN, END_TOKEN]
    folder.mkdir(parents=True, exist_ok=True)
    ids = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8"
    )
    tokenizer = CLIPTokenizer(
        vocab=str(folder / "vocab.json"),
        merges=str(folder / "merges.txt"),
        model_max_length=MAXIMUM_TOKENS,
        bos_token=START_TOKEN,
        eos_token=END_TOKEN,
        unk_token=END_TOKEN,
        pad_token=END_TOKEN,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer

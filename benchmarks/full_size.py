"""Full-size pipelines with random weights: they measure speed and memory honestly, nothing else.

The networks have the published sizes of Stable Diffusion 1.5, SDXL and Stable Video Diffusion; the
tokenizer is the starter model's, whose ids are as good as any others.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

import models_app.starter

STARTER_FOLDER = Path(models_app.starter.__file__).parent / "weights"
NATIVE_SIZE = {"sd1": 512, "sdxl": 1024}


def _text_config(**fields: Any) -> CLIPTextConfig:
    tokens: dict[str, Any] = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    return CLIPTextConfig(vocab_size=49408, max_position_embeddings=77, **tokens, **fields)


def make_encoders(architecture: str) -> dict[str, Any]:
    """What reads the prompt, or the picture that a clip starts from, by component."""
    if architecture == "svd":
        return {"image_encoder": _image_encoder()}
    first = _text_config(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    if architecture == "sd1":
        return {"text_encoder": CLIPTextModel(first)}
    second = _text_config(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=20,
        projection_dim=1280,
        hidden_act="gelu",
    )
    return {
        "text_encoder": CLIPTextModel(first),
        "text_encoder_2": CLIPTextModelWithProjection(second),
    }


def _image_encoder() -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=1280,
            intermediate_size=5120,
            num_hidden_layers=32,
            num_attention_heads=16,
            image_size=224,
            patch_size=14,
            projection_dim=1024,
        )
    )


def make_unet(architecture: str) -> Any:
    """The denoiser of ``sd1``, ``sdxl`` or ``svd``, in the default type and device."""
    if architecture == "svd":
        return UNetSpatioTemporalConditionModel()
    if architecture == "sd1":
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    return UNet2DConditionModel(
        sample_size=128,
        cross_attention_dim=2048,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def make_vae(architecture: str) -> Any:
    """The autoencoder of ``sd1``, ``sdxl`` or ``svd``, in the default type and device."""
    shared: dict[str, Any] = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
    }
    if architecture == "svd":
        return AutoencoderKLTemporalDecoder(sample_size=768, **shared)
    return AutoencoderKL(
        **shared,
        up_block_types=("UpDecoderBlock2D",) * 4,
        sample_size=NATIVE_SIZE[architecture],
        scaling_factor=0.18215 if architecture == "sd1" else 0.13025,
    )


def make_full_size(
    folder: Path, architecture: str, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> Path:
    """Writes a pipeline in diffusers' layout, unless the folder has one already.

    Args:
        folder: Where it goes.
        architecture: ``sd1`` (2.1 GB in 16 bit) or ``sdxl`` (6.9 GB).
        dtype: What the weights are stored in.
        seed: Seed of the weights.
    """
    if (folder / "model_index.json").exists():
        return folder
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(seed)
        parts = {"unet": make_unet(architecture), "vae": make_vae(architecture)}
        parts |= make_encoders(architecture)
    finally:
        torch.set_default_dtype(before)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    tokenizer = CLIPTokenizer.from_pretrained(STARTER_FOLDER / "tokenizer")
    aside = folder.with_name(f".{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    if architecture == "sd1":
        pipeline: Any = StableDiffusionPipeline(
            **parts,
            tokenizer=tokenizer,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    else:
        pipeline = StableDiffusionXLPipeline(
            **parts, tokenizer=tokenizer, tokenizer_2=tokenizer, scheduler=scheduler
        )
    pipeline.save_pretrained(aside, safe_serialization=True)
    aside.replace(folder)
    return folder

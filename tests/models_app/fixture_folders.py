"""Writes tiny diffusers folders and safetensors files without torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any


def write_safetensors(
    path: Path, tensors: dict[str, tuple[int, ...]], *, fill: int = 0, **metadata: str
) -> Path:
    """Write fp16 tensors of the given shapes, every byte the same."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    position = 0
    for name, shape in tensors.items():
        size = 2
        for side in shape:
            size *= side
        header[name] = {
            "dtype": "F16",
            "shape": list(shape),
            "data_offsets": [position, position + size],
        }
        position += size
    return write_raw(path, json.dumps(header).encode(), bytes([fill]) * position)


def write_raw(path: Path, header: bytes, data: bytes = b"", *, length: int | None = None) -> Path:
    """Write a file that need not be right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_pipeline(
    folder: Path, architecture: str = "sd1", *, fill: int = 0, channels: int = 0, name: str = ""
) -> Path:
    """Write a folder that looks like a pipeline of this family, with a few weights.

    Args:
        folder: Where it goes.
        architecture: The family.
        fill: Every byte of the weights.
        channels: What the UNet reads; 0 for the family's own.
        name: Of the pipeline's class; the family's own if empty.
    """
    video, large = architecture == "svd", architecture == "sdxl"
    width = {"sd1": 32, "sd2": 1024, "sdxl": 64, "svd": 32}[architecture]
    channels = channels or (8 if video else 4)
    pipeline = {"sdxl": "StableDiffusionXLPipeline", "svd": "StableVideoDiffusionPipeline"}
    index: dict[str, Any] = {
        "_class_name": name or pipeline.get(architecture, "StableDiffusionPipeline"),
        "_diffusers_version": "0.42.1",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    write_json(
        folder / "unet/config.json",
        {"in_channels": channels, "cross_attention_dim": width, "sample_size": 8},
    )
    write_safetensors(
        folder / "unet/diffusion_pytorch_model.safetensors",
        {"conv_in.weight": (4, channels, 3, 3)},
        fill=fill,
    )
    write_json(folder / "vae/config.json", {"latent_channels": 4})
    write_safetensors(
        folder / "vae/diffusion_pytorch_model.safetensors", {"encoder": (2, 2)}, fill=fill
    )
    write_json(folder / "scheduler/scheduler_config.json", {"prediction_type": "epsilon"})
    if video:
        index["image_encoder"] = ["transformers", "CLIPVisionModelWithProjection"]
        index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
        write_json(folder / "image_encoder/config.json", {})
        write_safetensors(folder / "image_encoder/model.safetensors", {"w": (2,)}, fill=fill)
        write_json(folder / "feature_extractor/preprocessor_config.json", {})
    else:
        index["safety_checker"] = [None, None]
        for number in ("", "_2") if large else ("",):
            index[f"text_encoder{number}"] = ["transformers", "CLIPTextModel"]
            index[f"tokenizer{number}"] = ["transformers", "CLIPTokenizer"]
            write_json(folder / f"text_encoder{number}/config.json", {"hidden_size": width})
            write_safetensors(
                folder / f"text_encoder{number}/model.safetensors", {"w": (2,)}, fill=fill
            )
            write_json(folder / f"tokenizer{number}/tokenizer_config.json", {})
            write_json(folder / f"tokenizer{number}/vocab.json", {"a": 0})
            (folder / f"tokenizer{number}/merges.txt").write_text("#version: 0.2\n")
    write_json(folder / "model_index.json", index)
    return folder

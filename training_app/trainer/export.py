"""The weights file that a training leaves: written, and proven by loading it again.

The layout is diffusers'. The header carries the adapters' own settings, without which a
reader takes alpha for rank, and the words by which other programs describe a LoRA. It
holds no date, so equal runs leave equal files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models_app.architectures import get_architecture
from models_app.loading import load_pipeline
from studio_project.child_protocol import ChildError
from training_app.trainer.adapters import adapter_settings
from training_app.trainer.config import TrainingConfig
from training_app.trainer.files import (
    CorruptFileError,
    hash_tensors,
    pack_tensors,
    read_tensors,
    write_file,
)
from training_app.trainer.request import TrainingRequest

_ADAPTER_METADATA = "lora_adapter_metadata"
_TO_DIFFUSERS = {".lora_A.": ".lora.down.", ".lora_B.": ".lora.up."}
#: Adapter name of the check in the pipeline that it makes.
_CHECKED = "checked"


@dataclass(frozen=True)
class RenderSettings:
    """One picture that is rendered alike in two places.

    Attributes:
        prompt: What it shows.
        seed: Of its noise.
        config: Size, steps and guidance.
    """

    prompt: str
    seed: int
    config: TrainingConfig


def _rename(name: str, pairs: Mapping[str, str]) -> str:
    for old, new in pairs.items():
        name = name.replace(old, new)
    return name


def describe(
    request: TrainingRequest, weights: Mapping[str, torch.Tensor], step: int
) -> dict[str, str]:
    """The words of the header."""
    config, given = request.config, request.metadata
    family = get_architecture(request.architecture)
    settings = {
        f"{component}.{name}": value
        for component in sorted({name.partition(".")[0] for name in weights})
        for name, value in adapter_settings(config, component).items()
    }
    words: dict[str, Any] = {
        "format": "pt",
        _ADAPTER_METADATA: json.dumps(settings, sort_keys=True),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{family.modelspec}/lora",
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.title": given.get("title") or request.job_id,
        "modelspec.resolution": f"{config.resolution}x{config.resolution}",
        "modelspec.trigger_phrase": config.trigger_word,
        "modelspec.hash_sha256": f"0x{hash_tensors(weights)}",
        "ss_network_module": "networks.lora",
        "ss_network_dim": config.rank,
        "ss_network_alpha": f"{config.alpha:g}",
        "ss_sd_model_name": given.get("base_name", ""),
        "ss_sd_model_hash": given.get("base_sha256", ""),
        "ss_base_model_version": request.architecture,
        "ss_output_name": given.get("title") or request.job_id,
        "ss_dataset_dirs": json.dumps(
            {given.get("dataset_name") or "dataset": {"img_count": len(request.images)}}
        ),
        "ss_num_train_images": len(request.images),
        "ss_resolution": f"({config.resolution}, {config.resolution})",
        "ss_learning_rate": config.learning_rate,
        "ss_lr_scheduler": config.lr_scheduler,
        "ss_steps": step,
        "ss_max_train_steps": config.max_train_steps,
        "ss_total_batch_size": config.effective_batch_size,
        "ss_seed": config.seed,
        "ss_min_snr_gamma": config.snr_gamma,
        "ss_caption_dropout_rate": config.caption_dropout,
        "studio.config": json.dumps(config.as_dict(), sort_keys=True, ensure_ascii=False),
    }
    return {name: str(value) for name, value in words.items() if value != ""}


def export_lora(
    path: Path, parameters: Mapping[str, torch.Tensor], request: TrainingRequest, step: int
) -> None:
    """Writes adapters as one safetensors file that plain diffusers loads.

    Args:
        path: Where it goes.
        parameters: The adapters by component and name: ``unet.…``, ``text_encoder.…``,
            ``text_encoder_2.…``.
        request: The run, for the words of the header.
        step: Optimizer steps done.

    Raises:
        ChildError: ``non_finite_loss`` if a weight is not finite; nothing is written.
        OSError: If the file cannot be written; nothing is left behind.
    """
    weights = {
        _rename(name, _TO_DIFFUSERS): parameter.detach() for name, parameter in parameters.items()
    }
    if not all(bool(torch.isfinite(weight).all()) for weight in weights.values()):
        raise ChildError("non_finite_loss")
    write_file(path, pack_tensors(weights, describe(request, weights, step)))


def read_lora(path: Path) -> dict[str, torch.Tensor]:
    """Reads what :func:`export_lora` wrote: the adapters by component and name.

    Raises:
        CorruptFileError: If the file is damaged.
        FileNotFoundError: If it is not there.
    """
    back = {new: old for old, new in _TO_DIFFUSERS.items()}
    weights, _ = read_tensors(path)
    return {_rename(name, back): value for name, value in weights.items()}


@torch.no_grad()
def render(
    pipeline: Any, settings: RenderSettings, *, on_step: Callable[[], None], **arguments: Any
) -> np.ndarray:
    """Renders one picture.

    Args:
        pipeline: A text-to-image pipeline.
        settings: What and how.
        on_step: Is called after every denoising step; may raise to break off.
        **arguments: More for the pipeline, such as ready prompt embeddings.

    Returns:
        Pixels (H, W, 3) in 0…1.
    """

    def after_step(*given: Any) -> dict[str, Any]:
        on_step()
        tensors: dict[str, Any] = given[-1]
        return tensors

    config = settings.config
    pixels: np.ndarray = pipeline(
        width=config.resolution,
        height=config.resolution,
        num_inference_steps=config.sample_inference_steps,
        guidance_scale=config.sample_guidance_scale,
        generator=torch.Generator().manual_seed(settings.seed),
        output_type="np",
        callback_on_step_end=after_step,
        **({"prompt": settings.prompt} if "prompt_embeds" not in arguments else {}),
        **arguments,
    ).images[0]
    return pixels


def verify_export(
    path: Path,
    parameters: Mapping[str, torch.Tensor],
    request: TrainingRequest,
    settings: RenderSettings,
    *,
    dtype: torch.dtype,
    on_step: Callable[[], None],
) -> np.ndarray:
    """Loads a weights file into a plain pipeline and renders a picture with it.

    Args:
        path: The file.
        parameters: What it should hold.
        request: The run.
        settings: The picture.
        dtype: What the pipeline computes in.
        on_step: Is called after every denoising step; may raise to break off.

    Returns:
        Pixels (H, W, 3) in 0…1.

    Raises:
        CorruptFileError: If the pipeline does not end up with exactly these adapters, or
            the picture is not finite.
    """
    pipeline = load_pipeline(
        request.base_folder, request.architecture, dtype=dtype, device=request.device
    )
    pipeline.load_lora_weights(
        path.parent, weight_name=path.name, adapter_name=_CHECKED, local_files_only=True
    )
    networks = {
        component: network
        for component, network in pipeline.components.items()
        if isinstance(network, torch.nn.Module)
    }
    loaded = {
        f"{component}.{name}".replace(f".{_CHECKED}.", "."): value
        for component, network in networks.items()
        for name, value in network.named_parameters()
        if f".{_CHECKED}." in name
    }
    if set(loaded) != set(parameters):
        raise CorruptFileError("the weights file fills other layers than were trained")
    for name, value in loaded.items():
        if not torch.equal(value, parameters[name].to(value)):
            raise CorruptFileError(f"{name} is not what was trained")
    strength = request.config.alpha / request.config.rank
    for module in (module for network in networks.values() for module in network.modules()):
        scaling = getattr(module, "scaling", None)
        if isinstance(scaling, dict) and scaling.get(_CHECKED) != strength:
            raise CorruptFileError("the weights file has lost its alpha")
    pixels = render(pipeline, settings, on_step=on_step)
    if not np.isfinite(pixels).all():
        raise CorruptFileError("a picture made with the weights file is not finite")
    return pixels

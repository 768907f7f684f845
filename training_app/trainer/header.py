"""The words in a weights file's header: what A1111, Forge, ComfyUI and others show of a LoRA.

Two vocabularies: ``ss_…`` as kohya's trainer writes it, and ModelSpec. No dates, so that equal
runs leave equal files. Whoever has the file can read it all, the tags of the captions too.

Source: kohya-ss/sd-scripts, ``train_network.py``; Stability-AI/ModelSpec, README (1.0.0).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from models_app.adapter_names import KOHYA_FAMILIES
from models_app.architectures import get_architecture
from models_app.inspection import read_json
from training_app.trainer.captions import training_prompts
from training_app.trainer.files import hash_data
from training_app.trainer.request import TrainingRequest

#: Bounds of the list of tags, so that captions of any length leave a header of bounded size.
MAX_TAGS, MAX_TAG = 500, 200
#: kohya's words for settings of ours; a setting that a run does not have is left out.
_SETTINGS = {
    "ss_network_dim": "rank",
    "ss_network_alpha": "alpha",
    "ss_network_dropout": "dropout",
    "ss_learning_rate": "learning_rate",
    "ss_unet_lr": "learning_rate",
    "ss_lr_scheduler": "lr_scheduler",
    "ss_lr_warmup_steps": "lr_warmup_steps",
    "ss_optimizer": "optimizer",
    "ss_max_train_steps": "max_train_steps",
    "ss_batch_size_per_device": "train_batch_size",
    "ss_gradient_accumulation_steps": "gradient_accumulation_steps",
    "ss_gradient_checkpointing": "gradient_checkpointing",
    "ss_mixed_precision": "mixed_precision",
    "ss_seed": "seed",
    "ss_max_grad_norm": "max_grad_norm",
    "ss_noise_offset": "noise_offset",
    "ss_min_snr_gamma": "snr_gamma",
    "ss_loss_type": "loss",
    "ss_caption_dropout_rate": "caption_dropout",
    "ss_shuffle_caption": "shuffle_captions",
    "ss_keep_tokens": "keep_tokens",
    "ss_flip_aug": "flip",
    "ss_prior_loss_weight": "prior_loss_weight",
    "ss_num_reg_images": "num_class_images",
}


def prediction_type(request: TrainingRequest) -> str:
    """What the base predicts, from its own scheduler: ``epsilon`` or ``v_prediction``.

    Raises:
        InspectionError: If the base has no readable scheduler configuration.
    """
    config = read_json(request.base_folder / "scheduler" / "scheduler_config.json")
    return str(config.get("prediction_type", "epsilon"))


def describe(
    request: TrainingRequest, weights: Mapping[str, torch.Tensor], step: int
) -> dict[str, str]:
    """The words of a file's header.

    Args:
        request: The run.
        weights: All tensors of the file.
        step: Optimizer steps done.

    Raises:
        InspectionError: If the base has no readable scheduler configuration.
    """
    is_dora = any("dora_scale" in name or "magnitude" in name for name in weights)
    digest = hash_data(weights)
    words: dict[str, Any] = {
        "format": "pt",
        "sshs_model_hash": digest,
        "modelspec.hash_sha256": f"0x{digest}",
        **_kohya_words(request, is_dora, step),
        **_modelspec_words(request),
        "studio.config": json.dumps(request.config.as_dict(), sort_keys=True, ensure_ascii=False),
    }
    return {name: _text(value) for name, value in words.items() if value not in ("", None)}


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def _kohya_words(request: TrainingRequest, is_dora: bool, step: int) -> dict[str, Any]:
    config, given = request.config, request.metadata
    settings = config.as_dict()
    family = KOHYA_FAMILIES[request.architecture]
    predicts_v = prediction_type(request) == "v_prediction"
    base_sha256 = str(given.get("base_sha256") or "")
    shown = sum(image.repeats for image in request.images)
    batches = math.ceil(shown / config.effective_batch_size)
    folder = str(given.get("dataset_name") or "dataset")
    trains_text = bool(settings.get("train_text_encoder"))
    return {
        **{word: settings[name] for word, name in _SETTINGS.items() if name in settings},
        "ss_text_encoder_lr": settings.get("text_encoder_learning_rate") if trains_text else "",
        # DoRA is LyCORIS' in that world, and named with its module.
        "ss_network_module": "lycoris.kohya" if is_dora else "networks.lora",
        "ss_network_args": json.dumps(
            {"algo": "lora", "dora_wd": "True", "wd_on_output": "True"} if is_dora else {}
        ),
        "ss_base_model_version": f"{family.version}{'_v' if predicts_v else ''}",
        "ss_v2": request.architecture == "sd2",
        "ss_sd_model_name": given.get("base_name"),
        "ss_sd_model_hash": base_sha256[:10],
        "ss_new_sd_model_hash": base_sha256,
        "ss_clip_skip": "None",
        "ss_output_name": given.get("title") or request.job_id,
        "ss_resolution": f"({config.resolution}, {config.resolution})",
        "ss_enable_bucket": True,
        "ss_num_train_images": shown,
        "ss_num_batches_per_epoch": batches,
        "ss_num_epochs": math.ceil(config.max_train_steps / batches),
        "ss_total_batch_size": config.effective_batch_size,
        "ss_steps": step,
        "ss_dataset_dirs": json.dumps({folder: {"img_count": len(request.images)}}),
        "ss_tag_frequency": json.dumps({folder: tag_frequency(request)}, ensure_ascii=False),
    }


def tag_frequency(request: TrainingRequest) -> dict[str, int]:
    """How often each tag (what stands between commas) occurs, the most frequent first."""
    tags = Counter(
        tag
        for image in request.images
        for part in training_prompts(image.caption, request.config, "")[0].split(",")
        if (tag := part.strip()) and len(tag) <= MAX_TAG
    )
    # Of those that are alike often, the first in the alphabet: equal runs give equal files.
    return dict(sorted(tags.items(), key=lambda one: (-one[1], one[0]))[:MAX_TAGS])


def _modelspec_words(request: TrainingRequest) -> dict[str, Any]:
    config, given = request.config, request.metadata
    family = get_architecture(request.architecture)
    predicts_v = prediction_type(request) == "v_prediction"
    name = family.modelspec
    if request.architecture == "sd2":
        # The specification tells these two apart, since they are run differently.
        name += "-768-v" if predicts_v else "-512"
    trigger, base = config.trigger_word, given.get("base_name")
    pictures = f"{len(request.images)} pictures"
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{name}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": given.get("title") or request.job_id,
        "modelspec.description": f"Trained on {pictures}" + (f", on {base}." if base else "."),
        "modelspec.resolution": f"{config.resolution}x{config.resolution}",
        "modelspec.prediction_type": "v" if predicts_v else "epsilon",
        "modelspec.trigger_phrase": trigger,
        "modelspec.usage_hint": f"Trigger word: {trigger}" if trigger else "",
    }

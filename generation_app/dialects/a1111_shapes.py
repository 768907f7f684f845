"""Answers in the form of AUTOMATIC1111, and the forms as the API documents them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from io import BytesIO
from typing import Any

from django.utils import timezone
from drf_spectacular.utils import inline_serializer
from PIL import Image
from rest_framework import serializers

from generation_app.dialects.a1111_reading import CHECKPOINT, CLIP_SKIP
from generation_app.dialects.adapter import as_base64
from generation_app.engine.metadata import A1111_KEY
from generation_app.engine.vocabulary import SCHEDULERS
from generation_app.models import GeneratedImage, GenerationJob
from models_app.models import DiffusionModel
from studio_project import __version__, storage

HASH_LENGTH = 10
SPACINGS = ({"name": "automatic", "label": "Automatic"}, {"name": "karras", "label": "Karras"})


# How AUTOMATIC1111 refuses.
ERROR = inline_serializer(
    "A1111Error",
    {
        "error": serializers.CharField(),
        "detail": serializers.JSONField(help_text="With 422 a list of {loc, msg, type}."),
        "body": serializers.CharField(allow_blank=True),
        "errors": serializers.CharField(),
    },
)


class A1111RequestSerializer(serializers.Serializer):
    """What is read of a request; all other fields are ignored and listed in `info`."""

    prompt = serializers.CharField(required=False)
    negative_prompt = serializers.CharField(required=False)
    width = serializers.IntegerField(required=False)
    height = serializers.IntegerField(required=False)
    steps = serializers.IntegerField(required=False)
    cfg_scale = serializers.FloatField(required=False)
    seed = serializers.IntegerField(required=False)
    sampler_name = serializers.CharField(required=False)
    scheduler = serializers.CharField(required=False, help_text="automatic or karras.")
    batch_size = serializers.IntegerField(required=False)
    n_iter = serializers.IntegerField(required=False, help_text="Times batch_size.")
    send_images = serializers.BooleanField(required=False)
    override_settings = serializers.DictField(
        required=False, help_text=f"{CHECKPOINT} and {CLIP_SKIP} are read."
    )


class A1111ImagesSerializer(serializers.Serializer):
    """The pictures, and how they were made."""

    images = serializers.ListField(child=serializers.CharField(), help_text="Base64.")
    parameters = serializers.DictField(help_text="Every resolved value.")
    info = serializers.CharField(help_text="JSON, with ignored_fields and job_id.")


class A1111ProgressSerializer(serializers.Serializer):
    """How far my job is."""

    progress = serializers.FloatField()
    eta_relative = serializers.FloatField()
    state = serializers.DictField()
    current_image = serializers.CharField(allow_null=True)
    textinfo = serializers.CharField(allow_null=True)


class A1111CheckpointSerializer(serializers.Serializer):
    """A model that paints."""

    title = serializers.CharField(help_text="What sd_model_checkpoint takes.")
    model_name = serializers.CharField()
    hash = serializers.CharField()
    sha256 = serializers.CharField()
    filename = serializers.CharField()
    config = serializers.CharField(allow_null=True)


class A1111LoraSerializer(serializers.Serializer):
    """A LoRA."""

    name = serializers.CharField()
    alias = serializers.CharField()
    path = serializers.CharField()
    metadata = serializers.DictField()


class A1111SamplerSerializer(serializers.Serializer):
    """A sampler."""

    name = serializers.CharField()
    aliases = serializers.ListField(child=serializers.CharField())
    options = serializers.DictField()


class A1111OptionsSerializer(serializers.Serializer):
    """The settings."""

    sd_model_checkpoint = serializers.CharField(allow_null=True)
    sd_checkpoint_hash = serializers.CharField(allow_blank=True, required=False)


class A1111StartedRequestSerializer(A1111RequestSerializer):
    """The same, with a picture to start from."""

    init_images = serializers.ListField(
        child=serializers.CharField(), help_text="One picture as base64, or as a data URI."
    )
    mask = serializers.CharField(required=False, help_text="White is painted anew.")
    inpainting_mask_invert = serializers.IntegerField(required=False, help_text="1: black is.")
    mask_blur = serializers.IntegerField(required=False)
    denoising_strength = serializers.FloatField(required=False)


def error(status: int, problem: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Return status and body of a refusal."""
    text = " ".join(part for part in (problem["detail"], problem.get("hint")) if part)
    refusal = {"error": problem["code"], "detail": text, "body": "", "errors": text}
    fields = problem.get("errors")
    if status != 400 or not fields:
        return status, refusal
    details = [
        {"loc": ["body", *name.split(".")], "msg": entry["message"], "type": entry["code"]}
        for name, entries in fields.items()
        for entry in entries
    ]
    return 422, {**refusal, "detail": details}


def painted(
    job: GenerationJob, images: list[GeneratedImage], ignored: list[str], *, send_images: bool
) -> dict[str, Any]:
    """Return the answer to a request for pictures."""
    values = job.parameters
    shared = {
        "prompt": values["prompt"],
        "negative_prompt": values["negative_prompt"],
        "width": values["width"],
        "height": values["height"],
        "steps": values["num_inference_steps"],
        "cfg_scale": values["guidance_scale"],
        "seed": values["seed"],
        "sampler_name": SCHEDULERS[values["scheduler"]].a1111,
        "batch_size": values["num_images"],
    }
    if "strength" in values:
        shared["denoising_strength"] = values["strength"]
    prompts = values.get("prompts") or [values["prompt"]] * len(images)
    model = job.base_model
    info = {
        **shared,
        "all_prompts": prompts,
        "all_negative_prompts": [values["negative_prompt"]] * len(images),
        "all_seeds": [image.seed for image in images],
        "subseed": -1,
        "all_subseeds": [-1] * len(images),
        "subseed_strength": 0,
        "sd_model_name": job.model_name,
        "sd_model_hash": model.sha256[:HASH_LENGTH] if model else "",
        "clip_skip": values["clip_skip"] + 1,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [_infotext(image) for image in images],
        "styles": [],
        "job_timestamp": _timestamp(job),
        "version": f"Studio {__version__}",
        "job_id": str(job.pk),
        "ignored_fields": ignored,
    }
    return {
        "images": [as_base64(image) for image in images] if send_images else [],
        "parameters": {**shared, "n_iter": 1, "send_images": send_images},
        "info": json.dumps(info, ensure_ascii=False),
    }


def _infotext(image: GeneratedImage) -> str:
    """Return what the picture's file says of itself."""
    with storage.open_key(image.key) as file, Image.open(BytesIO(file.read())) as picture:
        return str(picture.info.get(A1111_KEY, ""))


def _timestamp(job: GenerationJob) -> str:
    return f"{timezone.localtime(job.created_at):%Y%m%d%H%M%S}"


def progress(
    job: GenerationJob | None, count: int, picture: str | None, eta_seconds: int | None
) -> dict[str, Any]:
    """Return how far a job is; without one, that nothing is being done."""
    state = {
        "skipped": False,
        "interrupted": bool(job and job.cancel_requested),
        "stopping_generation": False,
        "job": str(job.pk) if job else "",
        "job_count": count,
        "job_timestamp": _timestamp(job) if job else "0",
        "job_no": 0,
        "sampling_step": job.step if job else 0,
        "sampling_steps": job.total_steps if job else 0,
    }
    return {
        "progress": job.progress if job else 0.0,
        "eta_relative": float(eta_seconds or 0),
        "state": state,
        "current_image": picture,
        "textinfo": None,
    }


def title_of(name: str, model: DiffusionModel) -> str:
    """Return a model's name with the beginning of its hash, as the lists there have it."""
    return f"{name} [{model.sha256[:HASH_LENGTH]}]" if model.sha256 else name


def parse_title(title: str) -> tuple[str, str]:
    """Return name and hash of a title; the hash is empty if it has none."""
    match = re.fullmatch(rf"(.+) \[([0-9a-f]{{{HASH_LENGTH}}})\]", title.strip())
    return (match[1], match[2]) if match else (title, "")


def checkpoint(name: str, model: DiffusionModel) -> dict[str, Any]:
    """Return an entry of `sd-models`."""
    return {
        "title": title_of(name, model),
        "model_name": name,
        "hash": model.sha256[:HASH_LENGTH],
        "sha256": model.sha256,
        "filename": name,
        "config": None,
    }


def lora(name: str, model: DiffusionModel) -> dict[str, Any]:
    """Return an entry of `loras`."""
    metadata = {"trigger_words": model.trigger_words, "architecture": model.architecture}
    return {"name": name, "alias": model.shown_title, "path": name, "metadata": metadata}


def options(model: DiffusionModel | None, title: str | None = None) -> dict[str, Any]:
    """Return the settings; the model is None where there is none to paint with."""
    return {
        CHECKPOINT: title if model else None,
        "sd_checkpoint_hash": model.sha256 if model else "",
        "sd_vae": "Automatic",
        CLIP_SKIP: 1,
        "samples_format": "png",
    }

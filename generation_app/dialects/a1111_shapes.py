"""Requests and answers in the form of AUTOMATIC1111: values in, values out, nothing looked up."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from io import BytesIO
from typing import Any

from django.utils import timezone
from django.utils.translation import gettext as _
from drf_spectacular.utils import inline_serializer
from PIL import Image
from rest_framework import serializers

from generation_app.dialects.adapter import Wish, as_base64
from generation_app.engine.metadata import A1111_KEY
from generation_app.engine.vocabulary import SCHEDULERS
from generation_app.models import GeneratedImage, GenerationJob
from models_app.models import DiffusionModel
from studio_project import __version__, storage
from studio_project.api import Problem

CHECKPOINT = "sd_model_checkpoint"
CLIP_SKIP = "CLIP_stop_at_last_layers"
# These reach the platform under the names they came with, so that its errors name them.
PASSED_ON = ("prompt", "negative_prompt", "width", "height", "steps", "cfg_scale", "seed")
SAMPLER = ("sampler_name", "sampler_index")
BATCH = ("batch_size", "n_iter")
READ = frozenset({*PASSED_ON, *SAMPLER, *BATCH, "scheduler", "send_images", "override_settings"})
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


# --- in -------------------------------------------------------------------------------------------
def read_request(body: Mapping[str, Any]) -> tuple[Wish, Any]:
    """Translate what both kinds of painting take.

    Args:
        body: The request as it came.

    Returns:
        The wish without its model, and the checkpoint that the settings name, or None.

    Raises:
        Problem: `invalid`.
    """
    given = {name: value for name, value in body.items() if value is not None}
    settings = given.get("override_settings", {})
    if not isinstance(settings, Mapping):
        message = _("This has to be an object.")
        raise Problem("invalid", message, fields={"override_settings": [message]})
    settings = {name: value for name, value in settings.items() if value is not None}
    ignored = set(given) - READ
    ignored |= {f"override_settings.{name}" for name in set(settings) - {CHECKPOINT, CLIP_SKIP}}
    wish = {name: given[name] for name in PASSED_ON if name in given}
    wish |= _images(given) | _clip_skip(settings)
    samplers = [name for name in SAMPLER if given.get(name)]
    if samplers:
        wish |= {name: given[name] for name in (samplers[0], "scheduler") if name in given}
    elif "scheduler" in given:
        ignored.add("scheduler")  # there it qualifies a sampler
    return Wish(wish, sorted(ignored)), settings.get(CHECKPOINT)


def _images(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return how many pictures are asked for: there it is a product."""
    counts = {name: given[name] for name in BATCH if name in given}
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            return {name: value}  # the platform says what is wrong with it
    if not counts:
        return {}
    return {"batch_size": counts.get("batch_size", 1) * counts.get("n_iter", 1)}


def _clip_skip(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return how many layers are left out: there 1 means none."""
    value = settings.get(CLIP_SKIP)
    if value is None:
        return {}
    whole = isinstance(value, int) and not isinstance(value, bool)
    return {"clip_skip": max(value - 1, 0) if whole and value >= 0 else value}


# --- out ------------------------------------------------------------------------------------------
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
    model = job.base_model
    info = {
        **shared,
        "all_prompts": [values["prompt"]] * len(images),
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

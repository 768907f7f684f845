"""Names: our schedulers, and what other programs call our fields and schedulers.

We speak diffusers' names. Those of AUTOMATIC1111, ComfyUI, InvokeAI and OpenAI are understood and
never answered. No torch: ``schedulers`` maps the same names to classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from generation_app.engine.errors import FieldProblem, RequestError


@dataclass(frozen=True)
class SchedulerName:
    """How one scheduler is called.

    Attributes:
        title: For people.
        a1111: What AUTOMATIC1111 writes after ``Sampler:``.
        others: Further names that mean the same, reduced by ``_reduce``.
    """

    title: str
    a1111: str
    others: tuple[str, ...] = ()


SCHEDULERS: dict[str, SchedulerName] = {
    "euler": SchedulerName("Euler", "Euler", ("eulerdiscrete",)),
    "euler_a": SchedulerName(
        "Euler a", "Euler a", ("eulerancestral", "eulerancestraldiscrete", "kdpmeulera")
    ),
    "dpmpp_2m": SchedulerName(
        "DPM++ 2M", "DPM++ 2M", ("dpmsolvermultistep", "dpmpp2mnormal", "dpmsolver++")
    ),
    "dpmpp_2m_karras": SchedulerName("DPM++ 2M Karras", "DPM++ 2M Karras", ("dpmpp2mk",)),
    "dpmpp_sde": SchedulerName(
        "DPM++ SDE", "DPM++ 2M SDE", ("dpmpp2msde", "sdedpmsolverpp", "dpmppsdenormal")
    ),
    "ddim": SchedulerName("DDIM", "DDIM"),
    "unipc": SchedulerName("UniPC", "UniPC", ("unipcbh2", "unipcmultistep")),
    "lcm": SchedulerName("LCM", "LCM"),
    "heun": SchedulerName("Heun", "Heun", ("heundiscrete",)),
    "pndm": SchedulerName("PNDM", "PLMS", ("plms",)),
}

FIELD_ALIASES: dict[str, str] = {
    "negativePrompt": "negative_prompt",
    "steps": "num_inference_steps",
    "cfg_scale": "guidance_scale",
    "cfgScale": "guidance_scale",
    "cfg": "guidance_scale",
    "n": "num_images",
    "batch_size": "num_images",
    "n_iter": "num_images",
    "num_outputs": "num_images",
    "num_images_per_prompt": "num_images",
    "quantity": "num_images",
    "noise_seed": "seed",
    "clipSkip": "clip_skip",
    "prompt_strength": "strength",
    "denoise": "strength",
    "init_image": "image",
    "source_image": "image",
    "mask": "mask_image",
    "source_mask": "mask_image",
    "hr_scale": "hires_scale",
    "hr_second_pass_steps": "hires_steps",  # nosec B105 (a "pass", not a password)
    "hr_upscaler": "hires_upscaler",
    "frames": "num_frames",
    "video_frames": "num_frames",
    "augmentation_level": "noise_aug_strength",
    "min_cfg": "min_guidance_scale",
}
# Every spelling of the two choices that are words, and ours for it.
OUTPUT_FORMATS: dict[str, str] = {"png": "png", "jpeg": "jpeg", "jpg": "jpeg", "webp": "webp"}
UPSCALERS: dict[str, str] = {"lanczos": "lanczos", "latent": "latent"}
SAMPLER_FIELDS = ("sampler", "sampler_name", "sampler_index")
LORA_ALIASES: dict[str, str] = {
    "name": "model",
    "id": "model",
    "strength": "weight",
    "scale": "weight",
    "model_strength": "weight",
    "strength_model": "weight",
}
# Sigma spacings by which A1111 and ComfyUI qualify a sampler; "" keeps the sampler's own.
_SPACINGS = {
    "": "",
    "automatic": "",
    "normal": "",
    "simple": "",
    "discrete": "",
    "karras": "karras",
}


def _reduce(name: str) -> str:
    """Bring one spelling of a scheduler's name to letters and digits ("DPM++ 2M" → "dpmpp2m")."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower().replace("++", "pp"))
    return plain.removeprefix("sample").removesuffix("scheduler")


def _spellings() -> dict[str, str]:
    table: dict[str, str] = {}
    for name, entry in SCHEDULERS.items():
        for spelling in (name, entry.title, entry.a1111, f"k_{name}", *entry.others):
            table.setdefault(_reduce(spelling), name)
    return table


_SPELLINGS = _spellings()


def canonical_scheduler(name: str, spacing: str = "") -> str | None:
    """Find our name for a scheduler.

    Args:
        name: Any known spelling, of ours or of another program.
        spacing: What the other program calls the schedule (``karras``, ``normal`` …).

    Returns:
        A key of ``SCHEDULERS``, or None where there is none.
    """
    kept = _SPACINGS.get(spacing.strip().lower())
    if kept is None:
        return None
    found = _SPELLINGS.get(_reduce(name))
    if found is None or not kept or found.endswith(f"_{kept}"):
        return found
    qualified = f"{found}_{kept}"
    return qualified if qualified in SCHEDULERS else None


@dataclass
class NamedFields:
    """A request's values under our names.

    Attributes:
        values: Our name → value; what was given as null is left out.
        sent_as: Our name → the name under which the sender gave it.
    """

    values: dict[str, Any]
    sent_as: dict[str, str]


def name_fields(
    body: Mapping[str, Any], known: frozenset[str], aliases: Mapping[str, str] | None = None
) -> NamedFields:
    """Bring the fields of a request to our names.

    Args:
        body: The request as it came.
        known: The names that the mode takes; an alias of any other is unknown too.
        aliases: Further names that depend on the mode.

    Returns:
        The values under our names.

    Raises:
        RequestError: A field is unknown, or two names of one field contradict each other.
    """
    fields = NamedFields({}, {})
    problems: list[FieldProblem] = []
    spellings = {**FIELD_ALIASES, **(aliases or {})}
    sampled = "scheduler" in known
    sampler = next((key for key in SAMPLER_FIELDS if body.get(key) is not None), None)
    for key, value in body.items():
        if sampled and (key in SAMPLER_FIELDS or (key == "scheduler" and sampler is not None)):
            continue
        name = key if key in known else spellings.get(key)
        if key == "size":
            problems += _add_size(fields, value)
        elif name not in known:
            problems.append(FieldProblem(str(key), "unknown_field", {"field": str(key)[:100]}))
        elif value is not None:
            problems += _add(fields, name, key, value)
    if sampled and sampler is not None:
        problems += _add_sampler(fields, sampler, body[sampler], body.get("scheduler"))
    if problems:
        raise RequestError(*problems)
    return fields


def _add(fields: NamedFields, name: str, key: str, value: Any) -> list[FieldProblem]:
    if name in fields.values and fields.values[name] != value:
        params = {"field": key, "other": fields.sent_as[name]}
        return [FieldProblem(key, "conflicting_fields", params)]
    fields.values[name] = value
    fields.sent_as[name] = key
    return []


def _add_size(fields: NamedFields, value: Any) -> list[FieldProblem]:
    if value is None:
        return []
    match = re.fullmatch(r"\s*(\d{1,6})\s*[x×]\s*(\d{1,6})\s*", value) if _is_text(value) else None
    if match is None:
        return [FieldProblem("size", "not_a_size")]
    width, height = int(match[1]), int(match[2])
    return _add(fields, "width", "size", width) + _add(fields, "height", "size", height)


def _add_sampler(fields: NamedFields, key: str, value: Any, spacing: Any) -> list[FieldProblem]:
    named = _is_text(value) and (spacing is None or _is_text(spacing))
    found = canonical_scheduler(value, spacing or "") if named else None
    if found is None:
        return [FieldProblem(key, "unknown_scheduler", {"choices": ", ".join(SCHEDULERS)})]
    return _add(fields, "scheduler", key, found)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 100

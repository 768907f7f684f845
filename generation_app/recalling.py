"""From what a picture or a text says of its making to the values of a form on this site.

Models and LoRAs are looked for by hash and by name among those that the person may use; what is not
here is named.
"""

from __future__ import annotations

import re
from typing import Any, BinaryIO

from django.conf import settings
from django.core.files.uploadedfile import UploadedFile
from django.db.models import Q
from django.utils.translation import gettext as _

from datasets_app.sniffing import sniff
from generation_app.engine.recall import (
    MAX_TEXT_CHARACTERS,
    Recalled,
    parse_a1111,
    recall_picture,
    usable_number,
)
from generation_app.engine.request import MODES, Limits, RequestError, resolve_request
from generation_app.inputs import MAX_UPLOAD_BYTES
from models_app.models import DiffusionModel
from models_app.querysets import ADAPTERS
from studio_project.api import Problem
from studio_project.models import User

_FIELDS = (
    "prompt", "negative_prompt", "width", "height", "num_inference_steps", "guidance_scale",
    "scheduler", "seed", "clip_skip", "strength", "mask_blur", "hires_scale", "hires_strength",
    "hires_steps", "hires_upscaler", "num_frames", "fps", "motion_bucket_id",
    "noise_aug_strength", "decode_chunk_size", "min_guidance_scale", "max_guidance_scale",
)  # fmt: skip
# A hash shorter than this could mean many models.
_LEAST_HASH = 8


def recall_file(user: User, file: UploadedFile | None) -> dict[str, Any]:
    """Return the form's values for a picture that somebody dropped.

    Raises:
        Problem: `invalid` naming `file`; `nothing_recalled` if it says nothing of its making.
    """
    if file is None or file.file is None:
        message = _("Send a picture in the field “file”, or a text in “text”.")
        raise Problem("invalid", message, fields={"file": [message]})
    if (file.size or 0) > MAX_UPLOAD_BYTES:
        message = _("This file is too large to be a picture.")
        raise Problem("request_too_large", message, status=413, fields={"file": [message]})
    stream: BinaryIO = file.file  # type: ignore[assignment]
    try:
        kind = sniff(stream)
        # A decoder of WebP makes room for all pixels when it opens a file.
        if not kind.is_readable or kind.pixels > settings.STUDIO_MAX_PIXELS:
            raise OSError("not a picture we read")
        stream.seek(0)
        recalled = recall_picture(stream)
    except OSError as error:
        message = _("This file is not a picture we can read. Add a PNG, JPEG or WebP file.")
        raise Problem("not_a_picture", message, fields={"file": [message]}) from error
    if recalled is None:
        message = _("This picture does not say how it was made.")
        raise Problem("nothing_recalled", message, status=422, fields={"file": [message]})
    return _answer(user, recalled)


def recall_quietly(user: User, file: UploadedFile | None) -> dict[str, Any] | None:
    """Return the form's values for a picture if it says how it was made, else None."""
    try:
        return recall_file(user, file)
    except Problem:
        return None


def recall_text(user: User, text: Any) -> dict[str, Any]:
    """Return the form's values for a pasted text in the form of AUTOMATIC1111.

    Raises:
        Problem: `invalid` naming `text`.
    """
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_TEXT_CHARACTERS:
        message = _("Paste the text that stands under a picture: prompt, negative prompt, values.")
        raise Problem("invalid", message, fields={"text": [message]})
    return _answer(user, Recalled("a1111", parse_a1111(text)))


def _answer(user: User, recalled: Recalled) -> dict[str, Any]:
    found = recalled.values
    mode = found.get("mode")
    missing: list[dict[str, str]] = []
    entry = found.get("model")
    model = _find(user, entry, DiffusionModel.Category.IMAGE, is_lora=False)
    if model is None and isinstance(entry, dict) and entry.get("name"):
        missing.append({"kind": "model", "name": str(entry["name"])[:200]})
    loras = []
    named = found.get("loras")
    for lora in named if isinstance(named, list) else []:
        row = _find(user, lora, DiffusionModel.Category.IMAGE, is_lora=True)
        weight = usable_number(lora.get("weight", 1.0)) if isinstance(lora, dict) else None
        if row is not None and weight is not None:
            loras.append({"model": row.pk, "name": row.name, "title": row.title, "weight": weight})
        elif isinstance(lora, dict) and lora.get("name"):
            missing.append({"kind": "lora", "name": str(lora["name"])[:200]})
    return {
        "source": recalled.source,
        "mode": mode if isinstance(mode, str) and mode in MODES else None,
        "values": _accepted(found),
        "model": model and {"id": model.pk, "name": model.name, "title": model.title},
        "loras": loras,
        "missing": missing,
    }


def _accepted(found: dict[str, Any]) -> dict[str, Any]:
    """Keep the values that a request would take, each as it would be resolved."""
    kept: dict[str, Any] = {}
    for name in _FIELDS:
        if found.get(name) is None:
            continue
        mode = next(m for m in MODES if name in _names(m))
        family = MODES[mode].architectures[0]
        # Strengths are judged together with the steps, and sizes alone.
        try:
            request = resolve_request(
                {name: found[name], **({"steps": 100} if "strength" in name else {})},
                architecture=family,
                mode=mode,
                limits=Limits(),
            )
        except RequestError:
            continue
        kept[name] = getattr(request, name)
    return kept


def _names(mode: str) -> set[str]:
    return set(MODES[mode].request.__dataclass_fields__)


def _find(user: User, entry: Any, category: str, *, is_lora: bool) -> DiffusionModel | None:
    """Find the model that a file names: by its hash, else by name or title, own before shared."""
    if not isinstance(entry, dict):
        return None
    rows = DiffusionModel.objects.usable_by(user)
    rows = rows.filter(ADAPTERS) if is_lora else rows.exclude(ADAPTERS)
    digest = str(entry.get("sha256") or "").lower()
    if len(digest) >= _LEAST_HASH and re.fullmatch(r"[0-9a-f]+", digest):
        by_hash: DiffusionModel | None = rows.filter(sha256__startswith=digest).first()
        if by_hash is not None:
            return by_hash
    name = str(entry.get("name") or "")[:200]
    if not name or "\0" in name:
        return None
    for wanted in (Q(name=name), Q(title=name)):
        matches = list(rows.filter(wanted).order_by("pk")[:20])
        own = [model for model in matches if model.owner_id == user.pk]
        if found := (own or matches):
            return found[0]
    return None

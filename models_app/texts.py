"""Checks what people write about a model: title, description, trigger words, default settings.

Which numbers a generator accepts is the generator's business: it registers its own check, and this
module only sees to the names and kinds of values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from django.utils.translation import gettext as _

from studio_project.api import Problem

MAX_TITLE = 200
MAX_DESCRIPTION = 4000
MAX_TRIGGER_WORDS = 20
MAX_TRIGGER_WORD = 100
MAX_SETTING_TEXT = 60

STILL_SETTINGS = frozenset(
    {"width", "height", "num_inference_steps", "guidance_scale", "scheduler", "clip_skip"}
)
VIDEO_SETTINGS = frozenset(
    {
        "width",
        "height",
        "num_inference_steps",
        "min_guidance_scale",
        "max_guidance_scale",
        "scheduler",
        "num_frames",
        "fps",
        "motion_bucket_id",
        "noise_aug_strength",
        "decode_chunk_size",
    }
)

# Takes settings and the model's category, returns messages by the name of the setting.
SettingsCheck = Callable[[Mapping[str, Any], str], Mapping[str, list[str]]]
_settings_checks: list[SettingsCheck] = []


def register_settings_check(check: SettingsCheck) -> None:
    """Have a generator refuse default settings that its own bounds forbid."""
    if check not in _settings_checks:
        _settings_checks.append(check)


def _refused(field: str, message: str) -> Problem:
    return Problem("invalid", f"{field}: {message}", fields={field: [message]})


def _clean(field: str, value: Any, limit: int) -> str:
    if not isinstance(value, str):
        raise _refused(field, _("Write a text."))
    text = value.strip()
    if len(text) > limit:
        raise _refused(field, _("Write at most %(count)d characters.") % {"count": limit})
    if any(ord(letter) < 32 and letter not in "\n\r\t" for letter in text):
        raise _refused(field, _("Remove the control characters."))
    return text


def check_title(value: Any) -> str:
    """Return a usable title.

    Raises:
        Problem: `invalid`, naming the field.
    """
    text = " ".join(_clean("title", value, MAX_TITLE).split())
    if not text:
        raise _refused("title", _("Give the model a title."))
    return text


def check_description(value: Any) -> str:
    """Return a usable description.

    Raises:
        Problem: `invalid`, naming the field.
    """
    return _clean("description", value, MAX_DESCRIPTION)


def check_trigger_words(value: Any) -> list[str]:
    """Return the trigger words without blanks and repetitions.

    Raises:
        Problem: `invalid`, naming the field.
    """
    if not isinstance(value, list):
        raise _refused("trigger_words", _("Send a list of words."))
    words = [" ".join(_clean("trigger_words", word, MAX_TRIGGER_WORD).split()) for word in value]
    kept = list(dict.fromkeys(word for word in words if word))
    if len(kept) > MAX_TRIGGER_WORDS:
        message = _("At most %(count)d trigger words.") % {"count": MAX_TRIGGER_WORDS}
        raise _refused("trigger_words", message)
    return kept


def check_default_settings(value: Any, category: str) -> dict[str, Any]:
    """Return default settings whose names are known and whose values are plain.

    Args:
        value: What was sent; values of None leave the setting to the site.
        category: ``image`` or ``video``.

    Raises:
        Problem: `invalid`, naming each field as ``default_settings.<name>``.
    """
    if not isinstance(value, dict):
        raise _refused("default_settings", _("Send an object of settings by name."))
    known = VIDEO_SETTINGS if category == "video" else STILL_SETTINGS
    settings = {name: item for name, item in value.items() if item is not None}
    errors: dict[str, list[str]] = {}
    for name, item in settings.items():
        if name not in known:
            errors[str(name)[:80]] = [_("This setting is not known here.")]
        elif name == "scheduler":
            if not isinstance(item, str) or not 0 < len(item) <= MAX_SETTING_TEXT:
                errors[name] = [_("Write the name of a scheduler.")]
        elif isinstance(item, bool) or not isinstance(item, int | float) or not math.isfinite(item):
            errors[name] = [_("Write a number.")]
    if not errors:
        for check in _settings_checks:
            errors |= {name: list(texts) for name, texts in check(settings, category).items()}
    if errors:
        name, texts = next(iter(errors.items()))
        raise Problem(
            "invalid",
            f"default_settings.{name}: {texts[0]}",
            fields={f"default_settings.{name}": texts for name, texts in errors.items()},
        )
    return settings

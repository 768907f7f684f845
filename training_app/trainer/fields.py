"""Kinds of settings: a number in bounds, a choice, a text, a flag; and their checks.

Which settings there are stands in ``config``. Nothing of torch or Django is imported.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import unicodedata
from collections.abc import Container, Iterable
from typing import Any


class ConfigError(ValueError):
    """A setting that cannot be used.

    Attributes:
        field: Name of the setting.
        message: A sentence in English.
        code: ``unknown_field``, ``wrong_type``, ``not_finite``, ``out_of_range``,
            ``not_a_choice``, ``not_a_multiple``, ``too_long``, ``too_many``, ``required``,
            ``not_for_method``, ``not_trainable``, ``not_installed``, ``needs_validation`` or
            ``unequal_shares``.
        params: The values of the sentence, for a translation of it.
    """

    def __init__(self, field: str, message: str, code: str, **params: Any) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message
        self.code = code
        self.params = params


def number(minimum: float, maximum: float) -> Any:
    """A number from ``minimum`` to ``maximum``; whole if the field is an ``int``."""
    return dataclasses.field(metadata={"minimum": minimum, "maximum": maximum})


def choice(*choices: str) -> Any:
    """One of some words."""
    return dataclasses.field(metadata={"choices": choices})


def text(maximum_length: int) -> Any:
    """A text of at most so many characters."""
    return dataclasses.field(metadata={"maximum_length": maximum_length})


def wrong_type(name: str, wanted: str) -> ConfigError:
    """The error of a value of another kind."""
    return ConfigError(name, f"must be {wanted}", "wrong_type", wanted=wanted)


def out_of_range(name: str, minimum: float, maximum: float) -> ConfigError:
    """The error of a number beyond its bounds."""
    sentence = f"must be between {minimum:g} and {maximum:g}"
    return ConfigError(name, sentence, "out_of_range", minimum=minimum, maximum=maximum)


def refuse_unknown(values: Iterable[str], fields: Container[str]) -> None:
    """Refuses what is no setting.

    Raises:
        ConfigError: ``unknown_field`` for the first of them.
    """
    for name in values:
        if name not in fields:
            raise ConfigError(str(name), "is not a setting of a training", "unknown_field")


def require_package(field: str, package: str) -> None:
    """Refuses a value that a package is needed for, if that is not installed.

    Raises:
        ConfigError: ``not_installed``.
    """
    if importlib.util.find_spec(package) is None:
        sentence = f"needs {package}: install it with pip, or choose another value"
        raise ConfigError(field, sentence, "not_installed", package=package)


def check_number(field: dataclasses.Field[Any], value: Any) -> float:
    """The number, if it is one within the field's bounds; else a :class:`ConfigError`."""
    wanted = "a whole number" if field.type == "int" else "a number"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_type(field.name, wanted)
    low, high = field.metadata["minimum"], field.metadata["maximum"]
    # An integer too large for a float is out of range, not an overflow.
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(field.name, "must be a finite number", "not_finite")
    if not low <= value <= high:
        raise out_of_range(field.name, low, high)
    if field.type == "int":
        if value != int(value):
            raise wrong_type(field.name, wanted)
        return int(value)
    return float(value)


def check_text(field: dataclasses.Field[Any], value: Any) -> str:
    """The text in its normal form, if it fits the field; else a :class:`ConfigError`."""
    if not isinstance(value, str):
        raise wrong_type(field.name, "text")
    if "choices" in field.metadata:
        choices = field.metadata["choices"]
        if value not in choices:
            sentence = f"must be one of {', '.join(choices)}"
            raise ConfigError(field.name, sentence, "not_a_choice", choices=list(choices))
        return value
    text = unicodedata.normalize("NFC", " ".join(value.split()))
    limit = field.metadata["maximum_length"]
    if len(text) > limit:
        sentence = f"must not be longer than {limit} characters"
        raise ConfigError(field.name, sentence, "too_long", maximum=limit)
    return text


def check_texts(field: dataclasses.Field[Any], value: Any) -> tuple[str, ...]:
    """The texts that are not empty, if they fit the field; else a :class:`ConfigError`."""
    if not isinstance(value, list | tuple):
        raise wrong_type(field.name, "a list of texts")
    limit = field.metadata["maximum_count"]
    if len(value) > limit:
        raise ConfigError(field.name, f"must not be more than {limit}", "too_many", maximum=limit)
    texts = (check_text(field, entry) for entry in value)
    return tuple(text for text in texts if text)


def check_flag(field: dataclasses.Field[Any], value: Any) -> bool:
    """The flag, if it is one; else a :class:`ConfigError`."""
    if not isinstance(value, bool):
        raise wrong_type(field.name, "true or false")
    return value


#: By a field's type.
CHECKS = {
    "int": check_number,
    "float": check_number,
    "str": check_text,
    "bool": check_flag,
    "tuple[str, ...]": check_texts,
}

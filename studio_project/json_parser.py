"""How a JSON body is read: strictly, and up to a size of its own."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from django.utils.translation import gettext as _
from rest_framework import exceptions, parsers

from studio_project.api import Problem

# Room for a large picture in base64; parsed, hostile JSON is thirty times its size.
MAX_JSON_BYTES = 16 * 1024**2
# NUL, and half of a surrogate pair: JSON can escape them; no database and no answer can hold them.
_NO_CHARACTER = re.compile("[\0\ud800-\udfff]")


class StrictJSONParser(parsers.BaseParser):
    """An object in JSON, without NaN, infinities or what is no character; of a size of its own."""

    media_type = "application/json"

    def parse(self, stream: Any, media_type: Any = None, parser_context: Any = None) -> Any:
        """Parse, refusing what no field of ours can hold by the field's name.

        Raises:
            ParseError: It is no JSON object.
            ValidationError: With the fields whose values are not numbers or not text.
            Problem: `request_too_large`.
        """
        text = stream.read(MAX_JSON_BYTES + 1)
        if len(text) > MAX_JSON_BYTES:
            detail = _("JSON of more than %(megabytes)d MB is not read here.") % {
                "megabytes": MAX_JSON_BYTES // 1024**2
            }
            raise Problem("request_too_large", detail, status=413)
        try:
            data = json.loads(text)
            unusable = dict(_unusable(data)) if isinstance(data, dict) else None
        except RecursionError as error:
            raise exceptions.ParseError(_("This JSON is nested too deeply.")) from error
        except ValueError as error:
            detail = _("This is not valid JSON (%(reason)s).") % {"reason": error}
            raise exceptions.ParseError(detail) from error
        if unusable is None:
            raise exceptions.ParseError(_("Send a JSON object."))
        if unusable:
            raise exceptions.ValidationError(unusable)
        return data


def _unusable(value: Any, path: str = "") -> Iterator[tuple[str, list[exceptions.ErrorDetail]]]:
    """Yield the dotted names of values that JSON's grammar or Python let through, and why."""
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _unusable(name, path or "body")
            shown = str(name).encode(errors="replace").decode()
            yield from _unusable(inner, f"{path}.{shown}" if path else shown)
    elif isinstance(value, float) and not math.isfinite(value):
        message = _("This is not a number that can be used; send a finite one.")
        yield path, [exceptions.ErrorDetail(message, "not_a_number")]
    elif isinstance(value, str) and _NO_CHARACTER.search(value):
        message = _("The text holds something that is not a character; remove it.")
        yield path, [exceptions.ErrorDetail(message, "invalid_characters")]

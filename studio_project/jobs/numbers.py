"""Numbers that columns, JSON and browsers can hold."""

from __future__ import annotations

import math
from typing import Any


def finite(value: Any) -> Any:
    """Returns the value, or ``None`` for a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def all_finite(fields: dict[str, Any]) -> dict[str, Any]:
    """Drops numbers that JSON and PostgreSQL's users cannot read."""
    return {name: value for name, value in fields.items() if finite(value) is value}

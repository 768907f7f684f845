"""Pages of a list by key, never by offset: newest first, the next begins after the last row."""

from __future__ import annotations

from typing import TypeVar

from django.core.exceptions import ValidationError
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest
from django.utils.dateparse import parse_datetime

Row = TypeVar("Row", bound=Model)


def page_by_key(
    request: HttpRequest, rows: QuerySet[Row], size: int, *, part: str
) -> tuple[list[Row], str]:
    """Return one page and the address of the next.

    Args:
        request: Its `after` names the last row the reader has; anything unreadable starts anew.
        rows: Rows with `created_at`.
        size: Rows on a page.
        part: Value of `part` in the next page's address, which asks for the rows alone.

    Returns:
        The rows, and the next page's address or "" when there is none.
    """
    moment, _separator, key = request.GET.get("after", "").rpartition("~")
    ordered = rows.order_by("-created_at", "-pk")
    try:
        after = parse_datetime(moment) if moment else None
        if after is not None and after.tzinfo is not None:
            ordered = ordered.filter(Q(created_at__lt=after) | Q(created_at=after, pk__lt=key))
        page = list(ordered[: size + 1])
    except (ValueError, ValidationError, OverflowError):
        page = list(rows.order_by("-created_at", "-pk")[: size + 1])
    if len(page) <= size:
        return page, ""
    last = page[size - 1]
    query = request.GET.copy()
    query["after"] = f"{last.created_at.isoformat()}~{last.pk}"  # type: ignore[attr-defined]
    query["part"] = part
    return page[:size], f"{request.path}?{query.urlencode()}"

"""Pages by key: every row once, whatever comes in between."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest
from django.test import RequestFactory

from studio_project.models import User
from studio_project.paging import page_by_key
from tests.factories import make_training
from training_app.models import TrainingJob


def _page(address: str) -> tuple[list[TrainingJob], str]:
    request = RequestFactory().get(address)
    return page_by_key(request, TrainingJob.objects.all(), 2, part="rows")


def test_every_row_comes_once_though_all_are_of_the_same_moment(alice: User) -> None:
    first = make_training(alice)
    rows = [first, *(make_training(alice, created_at=first.created_at) for _ in range(4))]
    seen, address = [], "/training?status=all"
    while address:
        page, address = _page(address)
        seen += [job.pk for job in page]
    assert len(seen) == len(set(seen)) == len(rows)


def test_the_next_address_keeps_the_filters(alice: User) -> None:
    for _number in range(3):
        make_training(alice)
    _rows, address = _page("/training?status=failed")
    query = parse_qs(urlsplit(address).query)
    assert query["status"] == ["failed"]
    assert query["part"] == ["rows"]


@pytest.mark.parametrize(
    "after", ["", "x", "~", "2026-01-01~x", "2026-13-45T00:00~1", "~~~", "\x00"]
)
def test_an_unreadable_key_starts_anew(alice: User, after: str) -> None:
    job = make_training(alice)
    request = RequestFactory().get("/training", {"after": after})
    rows, _address = page_by_key(request, TrainingJob.objects.all(), 2, part="rows")
    assert rows == [job]

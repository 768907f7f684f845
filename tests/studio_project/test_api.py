"""What every API shares: bodies that no field could hold are refused by the field's name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from rest_framework.test import APIClient

from studio_project import json_parser
from studio_project.models import User

Api = Callable[[User | None], APIClient]


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ('{"name": NaN}', ["name"]),
        ('{"name": 1e999, "type": -Infinity}', ["name", "type"]),
        ('{"config": {"learning_rate": NaN}}', ["config.learning_rate"]),
        ('{"loras": [{"weight": 1}, {"weight": Infinity}]}', ["loras.1.weight"]),
        ('{"name": "a\\u0000b"}', ["name"]),
        ('{"na\\u0000me": 1}', ["body"]),
        ('{"config": {"trigger_word": "\\ud800"}}', ["config.trigger_word"]),
        ('{"na\\udfffme": NaN}', ["body", "na?me"]),
    ],
)
def test_values_that_are_no_numbers_or_no_text_are_named(
    api: Api, alice: User, body: str, fields: list[str]
) -> None:
    answer = api(alice).post("/api/datasets/", body, content_type="application/json")
    assert answer.status_code == 400
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert list(answer.json()["errors"]) == fields


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[1]",
        '"text"',
        "null",
        b"\xff\xfe\xff",
        "[" * 100_000,
        '{"a":' * 900 + "1" + "}" * 900,
    ],
    ids=["empty", "broken", "list", "text", "null", "bytes", "deep", "deep object"],
)
def test_what_is_no_object_is_a_problem_and_no_crash(
    api: Api, alice: User, body: str | bytes
) -> None:
    answer = api(alice).post("/api/datasets/", body, content_type="application/json")
    assert answer.status_code == 400, answer.content
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_too_much_json_is_413(api: Api, alice: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_parser, "MAX_JSON_BYTES", 100)
    body = '{"name": "%s"}' % ("x" * 90)
    answer = api(alice).post("/api/datasets/", body, content_type="application/json")
    assert (answer.status_code, answer.json()["code"]) == (413, "request_too_large")

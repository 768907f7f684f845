"""What a request has to say about how it was painted reaches its owner."""

from __future__ import annotations

from typing import Any

from django.test import Client

from generation_app.notes import SENTENCES, notes_of
from studio_project.models import User
from tests.factories import make_generation, make_image

METRICS = {
    "notes": [
        {"code": "prompt_truncated", "params": {"tokens": 90, "limit": 75, "field": "prompt"}},
        {"code": "in_tiles", "params": {}},
        {"code": "from_a_newer_engine", "params": {}},
    ]
}


def test_notes_are_told_in_the_api_and_on_the_pictures_page(
    api: Any, client: Client, alice: User
) -> None:
    job = make_generation(alice, metrics=METRICS, status="completed")
    image = make_image(job)
    notes = api(alice).get(f"/api/generate/{job.pk}").json()["notes"]
    assert [note["code"] for note in notes] == ["prompt_truncated", "in_tiles"]
    assert "90" in notes[0]["message"] and "75" in notes[0]["message"]
    client.force_login(alice)
    page = client.get(f"/images/{image.pk}").content.decode()
    assert notes[1]["message"] in page


def test_every_measure_has_a_sentence(alice: User, db: None) -> None:
    for code in SENTENCES:
        job = make_generation(alice, metrics={"notes": [{"code": code, "params": {}}]})
        assert notes_of(job)[0]["message"]
    assert notes_of(make_generation(alice)) == []

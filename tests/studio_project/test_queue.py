"""The queue page's data: mine in order, others' without contents, why jobs wait."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from django.utils import timezone

from studio_project.models import User, Worker
from studio_project.queue import queue_overview
from studio_project.waiting import Waiting
from tests.factories import make_base, make_generation, make_training, make_worker


def test_mine_are_whole_and_others_are_bars(alice: User, bob: User) -> None:
    base = make_base()
    first = make_generation(alice, base, status="queued", queued_at=timezone.now())
    make_generation(bob, base, status="queued", queued_at=timezone.now())
    make_training(alice, status="running", title="Secret fox")
    make_training(alice, status="completed")
    seen = queue_overview(alice)
    assert {entry["kind"] for entry in seen["mine"]} == {"generation", "training"}
    assert [entry["title"] for entry in seen["mine"] if entry["kind"] == "training"] == [
        "Secret fox"
    ]
    assert str(first.pk) in {entry["id"] for entry in seen["mine"]}
    assert seen["others"] == [{"kind": "generation", "status": "queued", "position": 2}]
    assert seen["counts"]["generation"] == {"queued": 2, "running": 0}
    assert "Secret" not in json.dumps(queue_overview(bob)) + json.dumps(queue_overview(bob))


def test_workers_are_shown_and_what_is_warm_to_staff_only(alice: User, staff: User) -> None:
    make_worker(warm=["Private model"])
    make_worker("gone", last_seen_at=timezone.now() - timedelta(hours=1))
    (shown,) = queue_overview(alice)["workers"]
    assert shown["name"] == "test-worker"
    assert "warm" not in shown
    assert queue_overview(staff)["workers"][0]["warm"] == ["Private model"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (None, "no_worker"),
        ({}, "behind_jobs"),
        ({"queues": ["generation"]}, "no_worker"),
        ({"memory_bytes": 10}, "no_worker"),
        ({"state": Worker.State.REFUSING}, "queue_paused"),
        ({"quarantined": True}, "queue_paused"),
    ],
)
def test_why_a_job_waits(alice: User, fields: dict[str, object] | None, reason: str) -> None:
    if fields is not None:
        make_worker(**fields)
    job = make_training(alice, status="queued", required_bytes=1000)
    assert Waiting().reason(job) == reason


def test_only_queued_jobs_have_a_place(alice: User) -> None:
    running = make_training(alice, status="running")
    assert (Waiting().position(running), Waiting().reason(running)) == (None, "")
    queued = make_training(alice, status="queued", waiting_reason="device_busy")
    make_worker()
    assert (Waiting().position(queued), Waiting().reason(queued)) == (1, "device_busy")

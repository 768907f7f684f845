"""Two users on one site: fair turns, sharing and its end."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from websockets.sync.client import ClientConnection

from studio_project.management.demo_client import DemoClient, Refused
from tests.e2e import work
from tests.e2e.site import Site, poll


@pytest.fixture(scope="module")
def anna(site: Site) -> DemoClient:
    """The owner of a trained model."""
    return site.user()


@pytest.fixture(scope="module")
def ben(site: Site) -> DemoClient:
    """A colleague."""
    return site.user()


@pytest.fixture(scope="module")
def trained(anna: DemoClient) -> int:
    """A private model of Anna's."""
    job = work.start_training(anna, work.dataset(anna), max_train_steps=4)
    state = work.finished(anna, f"/api/training/{job}/progress")
    assert state["status"] == "completed", state
    return int(state["output_model"]["id"])


def _await(socket: ClientConnection, kind: str, seconds: float = 10) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        event = json.loads(socket.recv(timeout=max(deadline - time.monotonic(), 0.01)))
        if event["type"] == kind:
            return event
    raise AssertionError(f"no {kind} within {seconds} s")


def _sees(client: DemoClient, model: int) -> bool:
    models = client.call("GET", "/api/models/?limit=200")["results"]
    return any(row["id"] == model for row in models)


def test_one_job_of_ben_does_not_wait_for_twenty_of_anna(
    site: Site, anna: DemoClient, ben: DemoClient
) -> None:
    base = work.starter(anna)
    ask = {"model": base, "prompt": "a red circle on a blue background", "num_inference_steps": 30}
    hers = [
        anna.call("POST", "/api/generate/text-to-image", {**ask, "seed": seed})["id"]
        for seed in range(20)
    ]
    his = ben.call("POST", "/api/generate/text-to-image", ask)["id"]
    done = work.finished(ben, f"/api/generate/{his}")
    assert done["status"] == "completed", done
    started = [anna.call("GET", f"/api/generate/{job}")["started_at"] for job in hers]
    # At most those that ran while Ben's request arrived, and the one in hand, came before.
    before = [moment for moment in started if moment and moment < done["started_at"]]
    queued_before = [m for m in before if m < done["created_at"]]
    assert len(before) - len(queued_before) <= 1
    for job in hers:
        anna.call("POST", f"/api/generate/{job}/cancel")


def test_sharing_reaches_open_pages_and_ends_with_its_consequences(
    site: Site, anna: DemoClient, ben: DemoClient, trained: int
) -> None:
    assert not _sees(ben, trained)
    with pytest.raises(Refused, match="404"):
        ben.call("GET", f"/api/models/{trained}")
    with ben.events() as socket:
        anna.call("PATCH", f"/api/models/{trained}", {"visibility": "shared"})
        event = _await(socket, "diffusion_model.registered")
        assert event["id"] in (trained, str(trained))
        assert _sees(ben, trained)
        picture = work.generate(ben, trained, "a zorp on a red background")
        assert picture["status"] == "completed", picture

        for process in site.processes("manage.py worker"):
            process.suspend()  # so that a job of Ben's is still waiting when the sharing ends
        try:
            body = {"model": trained, "prompt": "a zorp"}
            waiting = ben.call("POST", "/api/generate/text-to-image", body)["id"]
            anna.call("PATCH", f"/api/models/{trained}", {"visibility": "private"})
        finally:
            for process in site.processes("manage.py worker"):
                process.resume()

        def lost() -> Any:
            event = json.loads(socket.recv(timeout=10))
            return event.get("gone") and event["type"].startswith("diffusion_model.")

        poll(lost, seconds=10, what="the model leaves Ben's page")
    assert not _sees(ben, trained)
    state = work.finished(ben, f"/api/generate/{waiting}")
    assert state["status"] == "failed", state
    assert state["error"]["code"] == "model_unavailable"
    kept = ben.call("GET", f"/api/generate/{picture['id']}")
    assert kept["model"]["name"] == picture["model"]["name"]
    assert len(ben.fetch(kept["images"][0]["url"])) > 100


def test_a_deactivated_user_is_out_at_once(site: Site) -> None:
    gone = site.user()
    with gone.events() as socket:
        site.manage(
            "shell",
            "-c",
            "from studio_project import accounts, models; "
            f"accounts.deactivate(models.User.objects.get(username={gone.name!r}))",  # type: ignore[attr-defined]
        )

        def closed() -> bool:
            try:
                socket.recv(timeout=35)
            except Exception:
                return socket.close_code == 4401
            return False

        poll(closed, seconds=40, what="the socket closed with 4401")
    with pytest.raises(Refused, match="401"):
        gone.call("GET", "/api/models/")

"""Whatever stops a training in the middle, the result is the same, once."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import numpy as np
import pytest
import redis

from studio_project.management.demo_client import DemoClient
from tests.e2e import work
from tests.e2e.site import Site, poll

ANSWER_SECONDS = 5
SLICE_SECONDS = 6
START_SECONDS = 60
#: With samples and a checkpoint every sixteen of them; long enough to be found in the middle.
STEPS = 80


@pytest.fixture(scope="module")
def own_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site that these tests may break; a training and a picture do not fit together."""
    running = Site(
        tmp_path_factory.mktemp("faults"),
        STUDIO_CHECKPOINT_SECONDS="1",
        STUDIO_DEVICE_MEMORY_MB="30",  # the starter has 19
        STUDIO_TURN_SECONDS="4",
        STUDIO_TRAINING_SLICE_MINUTES=str(SLICE_SECONDS / 60),
    )
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def client(own_site: Site) -> DemoClient:
    return own_site.user()


@pytest.fixture(scope="module")
def dataset(client: DemoClient) -> int:
    return work.dataset(client)


@pytest.fixture(scope="module")
def unbroken(client: DemoClient, dataset: int) -> dict[str, np.ndarray]:
    """The weights of a run that nothing disturbed."""
    job = work.start_training(client, dataset, max_train_steps=STEPS)
    state = work.finished(client, f"/api/training/{job}/progress")
    assert state["status"] == "completed", state
    return work.weights(client, state["output_model"]["id"])


def _kill(needle: str) -> Callable[[Site], None]:
    def kill(site: Site) -> None:
        victims = site.processes(needle)
        assert victims, f"no process {needle!r}"
        for victim in victims:
            victim.send_signal(signal.SIGKILL)

    return kill


def _flush(site: Site) -> None:
    url = (site.folder / "data" / "redis.url").read_text().strip()
    with redis.Redis.from_url(url) as store:
        store.flushall()


FAULTS = {
    "trainer": _kill("training_app.trainer"),
    "worker": _kill("manage.py worker"),
    "web": _kill("daphne"),
    "redis emptied": _flush,
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_training_survives_bit_for_bit_and_registers_once(
    fault: Callable[[Site], None],
    own_site: Site,
    client: DemoClient,
    dataset: int,
    unbroken: dict[str, np.ndarray],
) -> None:
    job = work.start_training(client, dataset, max_train_steps=STEPS)

    def in_the_middle() -> Any:
        return 16 < work.training(client, job)["step"] < STEPS - 16

    poll(in_the_middle, seconds=120, what="a training in the middle")
    fault(own_site)
    poll(lambda: own_site.answers("/readyz"), seconds=60, what="the site ready again")
    state = work.finished(client, f"/api/training/{job}/progress")
    assert state["status"] == "completed", state
    got = work.weights(client, state["output_model"]["id"])
    assert got.keys() == unbroken.keys()
    assert all(np.array_equal(got[name], unbroken[name]) for name in got)
    models = client.call("GET", "/api/models/?owner=me&limit=200")["results"]
    assert [m["name"] for m in models].count(state["output_model"]["name"]) == 1
    assert sum(m["name"].endswith(job[:8]) for m in models) == 1


def test_what_changes_meanwhile_changes_nothing(
    client: DemoClient, unbroken: dict[str, np.ndarray]
) -> None:
    own = work.dataset(client)
    job = work.start_training(client, own, max_train_steps=STEPS)
    images = client.call("GET", f"/api/datasets/{own}/images/")["results"]
    first, second = images[0]["id"], images[1]["id"]
    client.call("PATCH", f"/api/datasets/{own}/images/{first}", {"caption": "something else"})
    client.call("DELETE", f"/api/datasets/{own}/images/{second}")
    state = work.finished(client, f"/api/training/{job}/progress")
    assert state["status"] == "completed", state
    got = work.weights(client, state["output_model"]["id"])
    assert all(np.array_equal(got[name], unbroken[name]) for name in got)


LONG = {
    "max_train_steps": 100_000,
    "train_batch_size": 1,
    "sample_every_steps": 0,
    "checkpoint_every_steps": 20,
}


def _kept_at(client: DemoClient, job: str, step: int) -> dict[str, np.ndarray]:
    """Wait for a checkpoint, end its training and return its weights."""

    def found() -> Any:
        listed = client.call("GET", f"/api/training/{job}/checkpoints/")["results"]
        return next((entry for entry in listed if entry["step"] == step), None)

    checkpoint = poll(found, seconds=120, what=f"the checkpoint of step {step}")
    path = f"/api/training/{job}/checkpoints/{checkpoint['id']}/register"
    model = client.call("POST", path, {})
    client.call("POST", f"/api/training/{job}/cancel")
    return work.weights(client, model["id"])


def test_a_long_training_is_divided_for_a_short_one_and_does_not_change(
    own_site: Site, client: DemoClient, dataset: int
) -> None:
    other = own_site.user()
    pictures = work.dataset(other)
    began = time.monotonic()
    long = work.start_training(client, dataset, **LONG)
    poll(lambda: work.training(client, long)["step"], seconds=120, what="its first step")
    beginning = time.monotonic() - began
    short = work.start_training(
        other,
        pictures,
        max_train_steps=50,
        train_batch_size=1,
    )
    poll(
        lambda: work.training(other, short)["status"] == "running",
        # A turn works at least as long as it took to begin.
        seconds=max(SLICE_SECONDS, 2 * beginning),
        what="the short one running, at the end of the long one's turn",
    )
    divided_at = work.training(client, long)["step"]
    state = work.finished(other, f"/api/training/{short}/progress")
    assert state["status"] == "completed", state

    step = 20 * (divided_at // 20 + 1)
    got = _kept_at(client, long, step)
    undivided = work.start_training(client, dataset, **LONG)
    expected = _kept_at(client, undivided, step)
    notes = client.call("GET", f"/api/training/{long}/log")["timeline"]
    assert {"slice_over", "resumed"} <= {note["code"] for note in notes}
    assert got.keys() == expected.keys()
    assert all(np.array_equal(got[name], expected[name]) for name in got)


def test_pictures_start_soon_and_leave_no_trace_in_a_training_they_do_not_fit_beside(
    client: DemoClient, dataset: int, unbroken: dict[str, np.ndarray]
) -> None:
    job = work.start_training(client, dataset, max_train_steps=STEPS)
    poll(lambda: work.training(client, job)["step"], seconds=60, what="the first step")
    ask = {"model": work.starter(client), "prompt": "a red circle", "num_inference_steps": 4}
    asked = [
        client.call("POST", "/api/generate/text-to-image", {**ask, "seed": seed})["id"]
        for seed in range(20)
    ]
    poll(lambda: work.training(client, job)["phase"] == "aside", seconds=60, what="it stands aside")
    assert work.training(client, job)["step"] < STEPS
    for picture in asked:
        done = work.finished(client, f"/api/generate/{picture}")
        assert done["status"] == "completed", done
        created, started = (
            datetime.fromisoformat(done[name]) for name in ("created_at", "started_at")
        )
        assert (started - created).total_seconds() < START_SECONDS, done
    state = work.finished(client, f"/api/training/{job}/progress")
    assert state["status"] == "completed", state
    got = work.weights(client, state["output_model"]["id"])
    assert got.keys() == unbroken.keys()
    assert all(np.array_equal(got[name], unbroken[name]) for name in got)
    timeline = client.call("GET", f"/api/training/{job}/log")["timeline"]
    assert [note["code"] for note in timeline].count("stood_aside") == 1


def _ask_for_everything(client: DemoClient, dataset: int) -> tuple[str, str]:
    """Start a training and ask for a picture, each call within five seconds."""
    wish = {
        "dataset_id": dataset,
        "base_model_id": work.starter(client),
        "type": "lora",
        "config": {**work.QUICK, "max_train_steps": 4},
    }

    def quickly(path: str, body: Any = None) -> Any:
        began = time.monotonic()
        answer = client.call("POST", path, body)
        assert time.monotonic() - began < ANSWER_SECONDS, path
        return answer["id"]

    training = quickly("/api/training/", wish)
    quickly(f"/api/training/{training}/start")
    picture = {"model": wish["base_model_id"], "prompt": "a red circle on a blue background"}
    return training, quickly("/api/generate/text-to-image", picture)


def _both_complete(client: DemoClient, training: str, picture: str) -> None:
    for path in (f"/api/generate/{picture}", f"/api/training/{training}/progress"):
        state = work.finished(client, path)
        assert state["status"] == "completed", state
    models = client.call("GET", "/api/models/?owner=me&limit=200")["results"]
    assert sum(model["name"].endswith(training[:8]) for model in models) == 1


def test_a_frozen_redis_delays_answers_and_loses_no_job(
    own_site: Site, client: DemoClient, dataset: int
) -> None:
    (server,) = own_site.processes("valkey-server")
    server.suspend()
    try:
        asked = _ask_for_everything(client, dataset)
    finally:
        server.resume()
    _both_complete(client, *asked)


def test_a_redis_that_is_gone_is_started_again_and_loses_no_job(
    own_site: Site, client: DemoClient, dataset: int
) -> None:
    (server,) = own_site.processes("valkey-server")
    server.kill()
    asked = _ask_for_everything(client, dataset)
    poll(lambda: own_site.answers("/readyz"), seconds=60, what="Redis again")
    _both_complete(client, *asked)
    assert [other.pid for other in own_site.processes("valkey-server")] != [server.pid]

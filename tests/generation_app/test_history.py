"""How long requests take, told from rows that a site recorded, and what happens without them."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from django.utils import timezone

from generation_app.history import MOST, Finished, Work, finished, forecast, foretell, work_of
from models_app.models import DiffusionModel
from studio_project.models import User, Worker
from tests.factories import make_base, make_generation, make_worker

RECORDED = Path(__file__).with_name("recorded_jobs.json")


def recorded() -> list[tuple[dict[str, Any], dict[str, Any], float]]:
    rows = json.loads(RECORDED.read_text())
    return [(row["parameters"], row["metrics"], row["wall_seconds"]) for row in rows]


def test_after_thirty_recorded_jobs_the_median_error_is_small() -> None:
    """Each job after the thirtieth is foretold from those before it alone, as on the site."""
    rows = recorded()
    samples = [finished(*row) for row in rows]
    errors = []
    for index in range(30, len(rows)):
        before = [sample for sample in reversed(samples[:index]) if sample is not None]
        told = foretell(before[:MOST], work_of(rows[index][0]))
        assert told is not None
        errors.append(abs(told.seconds - rows[index][2]) / rows[index][2])
    assert len(errors) >= 30
    assert median(errors) <= 0.3, sorted(errors)


def test_a_size_never_painted_is_told_from_the_others() -> None:
    """Leave every size out once: what is left tells it, in the median, within a third."""
    rows = recorded()
    pairs = [(row, sample) for row in rows if (sample := finished(*row)) is not None]
    errors = []
    for size in {sample.work.pixels for _row, sample in pairs}:
        others = [sample for _row, sample in pairs if sample.work.pixels != size]
        for row, sample in pairs:
            if sample.work.pixels == size:
                told = foretell(others, work_of(row[0]))
                assert told is not None and told.basis == "base"
                errors.append(abs(told.seconds - row[2]) / row[2])
    assert median(errors) <= 1 / 3, sorted(errors)


def sample(pixels: int = 64 * 64, seconds: float = 1.0, start: float = 0.1) -> Finished:
    return Finished(Work(pixels, 10, 1), seconds, 0.2, start)


def test_nothing_is_told_without_history() -> None:
    assert foretell([], Work(4096, 10, 1)) is None


def test_one_slow_afternoon_spoils_nothing() -> None:
    told = foretell([sample(), sample(), sample(seconds=100.0)], Work(4096, 10, 1))
    assert told is not None
    assert told.seconds == pytest.approx(1.3)
    assert told.basis == "size"


def test_a_device_that_is_busy_now_is_believed_to_be() -> None:
    usual = [sample() for _ in range(20)]
    told = foretell([sample(seconds=4.0)] * 8 + usual, Work(4096, 10, 1))
    assert told is not None
    assert 2.0 < told.seconds < 4.3


def test_steps_and_pictures_count_by_themselves() -> None:
    told = foretell([sample()], Work(4096, 30, 3))
    assert told is not None
    assert told.seconds == pytest.approx(3 * 1.0 + 3 * 0.2 + 0.1)


def test_a_single_size_grows_proportionally_and_several_as_they_do() -> None:
    told = foretell([sample()], Work(4 * 4096, 10, 1))
    assert told is not None and told.seconds == pytest.approx(4 * 1.2 + 0.1)
    flat = [Finished(Work(size, 10, 1), 1.0, 0.2, 0.1) for size in (4096, 2 * 4096)]
    told = foretell(flat, Work(4 * 4096, 10, 1))
    assert told is not None and told.seconds == pytest.approx(1.3)


def test_what_had_to_load_tells_how_long_loading_takes() -> None:
    told = foretell([sample(start=8.1), sample(), sample(), sample(start=6.1)], Work(4096, 10, 1))
    assert told is not None
    assert told.load_seconds == pytest.approx(7.0)
    assert told.seconds == pytest.approx(1.3)


def test_a_first_request_that_started_the_engine_does_not_lengthen_the_next() -> None:
    parameters, metrics, wall = recorded()[10]
    loaded = metrics | {"load_seconds": 7.0, "seconds": metrics["seconds"] + 7.0}
    cold = finished(parameters, loaded, wall + 40)
    assert cold is not None and cold.has_loaded
    told = foretell([cold], cold.work)
    assert told is not None
    assert told.seconds == pytest.approx(cold.denoise_seconds + cold.rest_seconds)
    assert told.load_seconds == pytest.approx(cold.start_seconds)


def test_several_pictures_are_told_from_several() -> None:
    batch = Finished(Work(4096, 40, 4), 2.0, 0.8, 0.1)
    samples = [batch, sample()]
    for images, seconds in ((1, 1.0 + 0.2 + 0.1), (2, 1.0 + 0.4 + 0.1)):
        told = foretell(samples, Work(4096, 10 * images, images))
        assert told is not None
        assert told.seconds == pytest.approx(seconds)


def test_company_is_told_from_what_was_loaded_and_counts_where_nothing_else_does() -> None:
    parameters = {"width": 64, "height": 64, "num_inference_steps": 10, "num_images": 1}
    metrics = {"seconds": 0.7, "denoise_seconds": 0.5, "company": 4, "company_seconds": 2.1}
    shared = finished(parameters, metrics, 2.9)
    assert shared is not None
    assert (shared.had_company, shared.start_seconds) == (True, pytest.approx(0.1))
    told = foretell([shared], Work(4096, 10, 1))
    assert told is not None
    assert (told.seconds, told.load_seconds) == (pytest.approx(0.8), 0.0)
    told = foretell([shared, sample(), shared], Work(4096, 10, 1))
    assert told is not None
    assert told.seconds == pytest.approx(1.3)


def shared(part: float, *, start: float = 0.1) -> Finished:
    """One of four in a batch, each of which took a part of what it takes alone."""
    seconds = part * 1.3 - start / 4
    return Finished(Work(4096, 10, 1), seconds, 0.0, start, 1, 3 * seconds, had_company=True)


def test_what_a_request_adds_to_a_batch_is_learned_from_those_that_shared_one() -> None:
    told = foretell([shared(0.5), sample(), shared(0.6), shared(0.9)], Work(4096, 20, 1))
    assert told is not None
    assert told.seconds == pytest.approx(2 * 1.0 + 0.2 + 0.1)
    assert told.joint_seconds == pytest.approx(0.6 * told.seconds)
    # Nobody is told that company takes longer than none.
    told = foretell([sample(), shared(1.4)], Work(4096, 10, 1))
    assert told is not None and told.joint_seconds == told.seconds


def test_until_any_had_company_several_pictures_of_a_request_tell_what_it_is_worth() -> None:
    told = foretell([sample()], Work(4096, 10, 1))
    assert told is not None and told.joint_seconds == told.seconds
    batch = Finished(Work(4096, 40, 4), 2.0, 0.3, 0.1)
    told = foretell([batch, sample()], Work(4096, 10, 1))
    assert told is not None
    assert told.joint_seconds / told.seconds == pytest.approx(2.4 / (4 * 1.2 + 0.1))


def test_what_had_company_tells_how_busy_the_device_is_too() -> None:
    usual = [sample() for _ in range(20)] + [shared(0.5) for _ in range(20)]
    told = foretell([shared(1.5) for _ in range(8)] + usual, Work(4096, 10, 1))
    assert told is not None
    assert 2.0 < told.seconds < 3.9


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"seconds": 1.0},
        {"seconds": None, "denoise_seconds": 1.0},
        {"seconds": 1.0, "denoise_seconds": 2.0},
        {"seconds": 0.0, "denoise_seconds": 0.0},
    ],
)
def test_rows_that_tell_no_times_are_passed_over(metrics: dict[str, Any]) -> None:
    parameters = {"width": 64, "height": 64, "num_inference_steps": 4, "num_images": 1}
    assert finished(parameters, metrics, 1.0) is None


def test_work_counts_passes_frames_and_strength() -> None:
    plain = {"width": 64, "height": 64, "num_inference_steps": 10, "num_images": 2}
    assert work_of(plain) == Work(4096, 20.0, 2)
    assert work_of({**plain, "scheduler": "heun"}).passes == 40.0
    assert work_of({**plain, "strength": 0.5}).passes == 10.0
    assert work_of({**plain, "guidance_scale": 1.0}).passes == 10.0
    assert work_of({**plain, "num_frames": 14}).pixels == 14 * 4096


# --- the site's rows ------------------------------------------------------------------------------
def done(owner: User, base: DiffusionModel, worker: Worker, seconds: float) -> None:
    ended = timezone.now()
    metrics = {"seconds": seconds, "load_seconds": 0.0, "denoise_seconds": seconds}
    make_generation(
        owner,
        base,
        status="completed",
        metrics=metrics,
        worker=worker,
        started_at=ended - timedelta(seconds=seconds),
        finished_at=ended,
    )


def test_the_nearest_history_tells(alice: User) -> None:
    mine, other = make_base(size_bytes=1000), make_base("Other", size_bytes=4000)
    slow, fast = make_worker("slow", device_name="A CPU"), make_worker("fast", device_name="A GPU")
    parameters = make_generation(alice).parameters

    def told(base: DiffusionModel, worker: Worker) -> tuple[float, str] | None:
        found = forecast(base, "text-to-image", parameters, [worker])
        return found and (round(found.seconds, 3), found.basis)

    assert told(mine, slow) is None
    done(alice, other, fast, 8.0)
    assert told(mine, slow) == (2.0, "site")  # by the size of the weights
    done(alice, mine, fast, 1.0)
    assert told(mine, slow) == (1.0, "device")
    done(alice, mine, slow, 5.0)
    assert told(mine, slow) == (5.0, "size")
    assert told(mine, fast) == (1.0, "size")

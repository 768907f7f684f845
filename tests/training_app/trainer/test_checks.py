"""Problems of pictures and captions that are told ahead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.training_app.trainer.conftest import Recorder
from training_app.trainer.checks import report_problems
from training_app.trainer.dataset import make_examples
from training_app.trainer.reporting import Reporter
from training_app.trainer.request import TrainingRequest

MakeRequest = Callable[..., dict[str, Any]]


def _notes(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    request, channel = TrainingRequest.from_dict(values), Recorder()
    report_problems(make_examples(request.images, request.config), request, Reporter(channel))
    return {note["code"]: note["params"] for note in channel.of("note")}


def test_good_pictures_are_passed_over(make_request: MakeRequest) -> None:
    assert _notes(make_request()) == {}


def test_what_is_cropped_enlarged_and_cut_off_is_told(
    make_request: MakeRequest, images: list[dict[str, Any]]
) -> None:
    wide = images[0] | {"width": 256}
    wider = images[1] | {"width": 640}
    small = images[2] | {"width": 16, "height": 16}
    long = images[3] | {"caption": "very " * 100}
    fits = images[4] | {"width": 60, "height": 60, "caption": "x" * 70}
    assert _notes(make_request(images=[wide, wider, small, long, fits])) == {
        "pictures_cropped": {"count": 2, "share": 0.9},
        "pictures_enlarged": {"count": 1, "factor": 4.0},
        "text_too_long": {"count": 1},
    }

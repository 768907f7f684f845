"""Requests as they come over the pipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training_app.trainer.config import ADDED_LATER, ConfigError, TrainingConfig
from training_app.trainer.request import TrainingRequest

MakeRequest = Callable[..., dict[str, Any]]


def test_a_request_becomes_plain_values(make_request: MakeRequest, tmp_path: Path) -> None:
    request = TrainingRequest.from_dict(make_request(resume_folder=str(tmp_path)))
    assert request.resume_folder == tmp_path
    assert request.config.max_train_steps == 12
    assert [image.caption for image in request.images[:1]] == ["a zorp on a red background"]
    assert TrainingRequest.from_dict(make_request()).resume_folder is None


def test_the_trigger_word_of_the_request_counts(make_request: MakeRequest) -> None:
    request = TrainingRequest.from_dict(make_request(trigger_word="bromp"))
    assert request.config.trigger_word == "bromp"


def test_a_request_without_pictures_is_refused(make_request: MakeRequest) -> None:
    with pytest.raises(ValueError, match="no picture"):
        TrainingRequest.from_dict(make_request(images=[]))


def test_a_setting_that_cannot_be_used_is_named(make_request: MakeRequest) -> None:
    values = make_request()
    with pytest.raises(ConfigError, match="rank"):
        TrainingRequest.from_dict(values | {"config": values["config"] | {"rank": 0}})


def test_settings_of_another_method_are_named(make_request: MakeRequest) -> None:
    with pytest.raises(ConfigError, match="tune"):
        TrainingRequest.from_dict(make_request() | {"method": "full"})
    with pytest.raises(ConfigError, match="method"):
        TrainingRequest.from_dict(make_request() | {"method": "magic"})


def test_only_what_decides_the_weights_decides_the_identity(make_request: MakeRequest) -> None:
    def identity(config: dict[str, Any] | None = None, **changes: Any) -> str:
        return TrainingRequest.from_dict(make_request(config, **changes)).identity

    assert identity() == identity()
    assert identity({"sample_prompts": ["a"]}, device="cuda:0", output_folder="/x") == identity()
    assert identity({"num_devices": 2}) == identity()
    assert identity({"seed": 1}) != identity()
    assert identity(method="dreambooth") != identity()
    assert identity(metadata={"base_sha256": "other"}) != identity()
    repeated = [image | {"repeats": 2} for image in make_request()["images"]]
    assert identity(images=repeated) != identity()
    assert identity({"checkpoint_every_steps": 3}) == identity()


@pytest.mark.parametrize("changes", [{"repeats": 0}, {"repeats": 10**6}, {"width": 0}])
def test_a_picture_that_cannot_be_shown_is_refused(
    make_request: MakeRequest, images: list[dict[str, Any]], changes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="picture 0"):
        TrainingRequest.from_dict(make_request(images=[images[0] | changes]))


def test_trainings_saved_before_a_setting_existed_stay_what_they_were(
    make_request: MakeRequest,
) -> None:
    now = make_request(ADDED_LATER)
    before = {**now, "config": {k: v for k, v in now["config"].items() if k not in ADDED_LATER}}
    old, new = TrainingRequest.from_dict(before), TrainingRequest.from_dict(now)
    assert old.config == new.config
    assert old.identity == new.identity
    assert TrainingConfig.from_dict(before["config"]) == new.config
    other = TrainingRequest.from_dict(make_request({"torch_compile": "on"}))
    assert other.identity != new.identity

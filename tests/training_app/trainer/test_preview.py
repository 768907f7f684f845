"""Which prompts the sample pictures show; that they are made is tested with whole runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.vae import Decoder

from tests.training_app.trainer.conftest import Recorder, make_training
from training_app.trainer.dataset import make_examples
from training_app.trainer.preview import Previewer, choose_prompts
from training_app.trainer.reporting import Reporter
from training_app.trainer.request import TrainingRequest

CONTROL = "a red circle on a blue background"


@pytest.fixture
def choose(make_request: Callable[..., dict[str, Any]]) -> Callable[..., list[str]]:
    """Chooses prompts for a manifest with the given captions."""

    def do(captions: list[str], **config: Any) -> list[str]:
        values = make_request({"sample_prompts": [], "control_prompt": CONTROL} | config)
        entries = [values["images"][0] | {"caption": caption} for caption in captions]
        request = TrainingRequest.from_dict(values | {"images": entries})
        return choose_prompts(make_examples(request.images, request.config), request)

    return do


def test_the_first_different_captions_and_the_control(choose: Callable[..., list[str]]) -> None:
    captions = ["a zorp", "a zorp", "red grass", "a zorp in space"]
    assert choose(captions) == ["a zorp", "zorp, red grass", CONTROL]


def test_pictures_without_captions_are_sampled_by_the_trigger_word(
    choose: Callable[..., list[str]],
) -> None:
    assert choose(["", ""]) == ["zorp", CONTROL]


def test_own_prompts_come_as_they_are(choose: Callable[..., list[str]]) -> None:
    assert choose(["a zorp"], sample_prompts=["x", "y"]) == ["x", "y", CONTROL]


@pytest.mark.parametrize("control", ["", "A ZORP.", "a zorp"])
def test_a_control_with_the_trigger_word_is_none(
    choose: Callable[..., list[str]], control: str
) -> None:
    assert choose(["a zorp"], control_prompt=control) == ["a zorp"]


def test_samples_of_a_whole_network_are_decoded_in_full_precision(
    make_request: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, seen = Decoder.forward, []

    def forward(self: Decoder, latents: torch.Tensor, *given: Any) -> Any:
        seen.append((latents.dtype, torch.is_autocast_enabled("cpu")))
        return decode(self, latents, *given)

    monkeypatch.setattr(Decoder, "forward", forward)
    values = make_request({"mixed_precision": "bf16"}, method="full")
    training, channel = make_training(values), Recorder()
    request = TrainingRequest.from_dict(values)
    previewer = Previewer(request, training.learner, training.prompts, ["zorp"], Reporter(channel))
    monkeypatch.setitem(training.prompts.places, "zorp", training.prompts.places[""])
    assert len(previewer.sample(0)) == 1
    assert seen == [(torch.float32, False)]

"""What a request may be: bounds, defaults, aliases, and errors that name the field."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from generation_app.engine.errors import MESSAGES
from generation_app.engine.request import (
    GenerationRequest,
    Limits,
    LoraChoice,
    RequestError,
    resolve_request,
)
from generation_app.engine.vocabulary import SCHEDULERS, canonical_scheduler


def resolve(body: dict[str, Any], **options: Any) -> GenerationRequest:
    return resolve_request(body, architecture="sd1", **options)


def problem(body: Any, **options: Any) -> tuple[str, str]:
    with pytest.raises(RequestError) as caught:
        resolve(body, **options)
    assert caught.value.message
    return caught.value.field, caught.value.code


def test_an_empty_request_has_every_value() -> None:
    made = resolve({})
    assert (made.width, made.height, made.num_images, made.prompt) == (512, 512, 1, "")
    assert made.scheduler in SCHEDULERS
    assert 0 <= made.seed < 2**32
    assert made.seeds == [made.seed]


def test_the_models_own_defaults_come_before_the_familys_and_after_the_requests() -> None:
    defaults = {"width": 64, "height": 64, "guidance_scale": 4, "lora_weight": 0.7, "seed": None}
    made = resolve({"height": 128}, defaults=defaults)
    assert (made.width, made.height, made.guidance_scale) == (64, 128, 4.0)
    assert resolve_request({}, architecture="sdxl").width == 1024


def test_a_resolved_request_resolves_to_itself() -> None:
    made = resolve({"prompt": "🦊", "loras": [{"model": 3}, {"model": "ink", "weight": -0.5}]})
    again = resolve(made.as_parameters())
    assert again == made
    assert again.loras == (LoraChoice(3), LoraChoice("ink", -0.5))


def test_random_seeds_are_drawn_and_given_seeds_are_kept() -> None:
    assert resolve({"seed": 0}).seed == 0
    assert resolve({"seed": 2**32 - 1, "num_images": 3}).seeds == [2**32 - 1, 0, 1]
    assert len({resolve({"seed": seed}).seed for seed in (-1, None) * 4}) == 8


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({"width": 63}, "width", "out_of_range"),
        ({"width": 100}, "width", "not_a_multiple"),
        ({"width": 0}, "width", "out_of_range"),
        ({"height": -8}, "height", "out_of_range"),
        ({"height": 16384}, "height", "out_of_range"),
        ({"height": "512"}, "height", "not_an_integer"),
        ({"height": True}, "height", "not_an_integer"),
        ({"height": 512.5}, "height", "not_an_integer"),
        ({"num_inference_steps": 0}, "num_inference_steps", "out_of_range"),
        ({"steps": 10_000}, "steps", "out_of_range"),
        ({"guidance_scale": float("nan")}, "guidance_scale", "not_a_number"),
        ({"guidance_scale": float("inf")}, "guidance_scale", "not_a_number"),
        ({"guidance_scale": 10**400}, "guidance_scale", "not_a_number"),
        ({"cfg_scale": 31}, "cfg_scale", "out_of_range"),
        ({"guidance_scale": -0.1}, "guidance_scale", "out_of_range"),
        ({"num_images": 1000}, "num_images", "out_of_range"),
        ({"num_images": 0}, "num_images", "out_of_range"),
        ({"seed": 2**32}, "seed", "out_of_range"),
        ({"seed": -2}, "seed", "out_of_range"),
        ({"seed": "1"}, "seed", "not_an_integer"),
        ({"seed": False}, "seed", "not_an_integer"),
        ({"prompt": "x" * 20_000}, "prompt", "too_long"),
        ({"prompt": 7}, "prompt", "not_text"),
        ({"prompt": "a\0b"}, "prompt", "invalid_characters"),
        ({"negative_prompt": "\ud83d"}, "negative_prompt", "invalid_characters"),
        ({"scheduler": "magic"}, "scheduler", "unknown_scheduler"),
        ({"scheduler": 4}, "scheduler", "unknown_scheduler"),
        ({"sampler_name": "magic"}, "sampler_name", "unknown_scheduler"),
        ({"sampler_name": "Heun", "scheduler": "karras"}, "sampler_name", "unknown_scheduler"),
        ({"clip_skip": 12}, "clip_skip", "out_of_range"),
        ({"loras": "ink"}, "loras", "not_a_list"),
        ({"loras": ["ink"]}, "loras", "invalid_lora"),
        ({"loras": [{"weight": 1}]}, "loras", "invalid_lora"),
        ({"loras": [{"model": "a", "name": "b"}]}, "loras", "invalid_lora"),
        ({"loras": [{"model": "a", "colour": 1}]}, "loras", "invalid_lora"),
        ({"loras": [{"model": "a", "weight": float("nan")}]}, "loras", "not_a_number"),
        ({"loras": [{"model": "a", "weight": 5}]}, "loras", "out_of_range"),
        ({"loras": [{"model": 1}, {"model": 1}]}, "loras", "duplicate_lora"),
        ({"loras": [{"model": i} for i in range(9)]}, "loras", "too_many_loras"),
        ({"size": "large"}, "size", "not_a_size"),
        ({"steps": 5, "num_inference_steps": 6}, "num_inference_steps", "conflicting_fields"),
        ({"hires_fix": True}, "hires_fix", "unknown_field"),
        ([], "", "not_an_object"),
    ],
)
def test_what_is_wrong_is_named(body: Any, field: str, code: str) -> None:
    assert problem(body) == (field, code)


def test_everything_wrong_is_told_at_once() -> None:
    with pytest.raises(RequestError) as caught:
        resolve({"width": 1, "steps": 0, "cfg": -1})
    assert [p.field for p in caught.value.problems] == ["width", "steps", "cfg"]


def test_limits_can_be_set() -> None:
    limits = Limits(max_images=2, max_pixels=512 * 512)
    assert problem({"num_images": 3}, limits=limits) == ("num_images", "out_of_range")
    body = {"width": 520, "height": 512}
    assert problem(body, limits=limits) == ("width", "too_many_pixels")


def test_a_video_model_does_not_paint_from_text() -> None:
    with pytest.raises(RequestError) as caught:
        resolve_request({}, architecture="svd")
    assert caught.value.code == "architecture_unsupported"


def test_other_programs_names_are_understood_and_not_answered() -> None:
    a1111 = {"steps": 9, "cfg_scale": 4, "sampler_name": "Euler a", "batch_size": 2, "seed": 5}
    comfy = {"steps": 9, "cfg": 4, "sampler_name": "euler_ancestral", "scheduler": "normal", "n": 2}
    openai = {"size": "640x512", "n": 2}
    made = resolve(a1111)
    assert made == resolve({**comfy, "noise_seed": 5})
    assert (made.num_inference_steps, made.scheduler, made.num_images) == (9, "euler_a", 2)
    assert (resolve(openai).width, resolve(openai).height) == (640, 512)
    assert not set(made.as_parameters()) & {"steps", "cfg_scale", "sampler_name", "batch_size"}


@pytest.mark.parametrize(
    ("name", "spacing", "expected"),
    [
        ("DPM++ 2M Karras", "", "dpmpp_2m_karras"),
        ("DPM++ 2M", "Karras", "dpmpp_2m_karras"),
        ("dpmpp_2m", "normal", "dpmpp_2m"),
        ("dpmpp_2m_k", "", "dpmpp_2m_karras"),
        ("DPM++ 2M SDE", "", "dpmpp_sde"),
        ("uni_pc", "simple", "unipc"),
        ("PLMS", "", "pndm"),
        ("k_euler_a", "", "euler_a"),
        ("EulerAncestralDiscreteScheduler", "", "euler_a"),
        ("DPMSolverMultistepScheduler", "", "dpmpp_2m"),
        ("euler", "karras", None),
        ("euler", "beta", None),
        ("", "", None),
    ],
)
def test_scheduler_spellings(name: str, spacing: str, expected: str | None) -> None:
    assert canonical_scheduler(name, spacing) == expected


def test_every_scheduler_is_found_by_each_of_its_names() -> None:
    for name, entry in SCHEDULERS.items():
        assert {canonical_scheduler(x) for x in (name, entry.title, entry.a1111)} == {name}


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
_FIELDS = st.sampled_from(
    ["width", "steps", "cfg", "seed", "prompt", "loras", "sampler_name", "scheduler", "size", "zz"]
)


@settings(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(_FIELDS, _ANYTHING))
def test_whatever_is_sent_is_resolved_or_refused_with_a_sentence(body: dict[str, Any]) -> None:
    try:
        made = resolve(body)
    except RequestError as error:
        assert all(p.message and p.code in MESSAGES for p in error.problems)
    else:
        assert 64 <= made.width <= 2048


def test_checking_a_request_needs_neither_torch_nor_django() -> None:
    code = (
        "import sys, generation_app.engine.request, generation_app.engine.metadata;"
        "sys.exit(bool({'torch', 'diffusers', 'django'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

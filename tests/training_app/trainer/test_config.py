"""Settings: defaults, bounds, errors that name the field."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models_app.architectures import ARCHITECTURES
from training_app.trainer.config import FIELDS, ConfigError, TrainingConfig, resolve_config
from training_app.trainer.presets import METHODS, PRESETS, TUNES

TINY = {"width": 64}


def _resolve(asked: dict[str, Any] | None = None, **changes: Any) -> TrainingConfig:
    given = {"architecture": "sd1", "method": "lora", "base_defaults": None, "num_images": 16}
    given |= changes
    return resolve_config(asked or {}, **given)


def test_importing_the_configuration_loads_neither_torch_nor_django() -> None:
    check = (
        "import sys, training_app.trainer.config, training_app.trainer.request; "
        "print([m for m in ('torch', 'diffusers', 'transformers', 'peft', 'django') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_field_is_described() -> None:
    described = TrainingConfig.__doc__ or ""
    assert [name for name in FIELDS if f"{name}: " not in described] == []


def test_defaults_count_image_passes_not_steps() -> None:
    few, many = _resolve(num_images=5), _resolve(num_images=20)
    assert few.max_train_steps * few.effective_batch_size >= 1500
    assert many.passes_per_image(20) == pytest.approx(110, abs=1)
    assert _resolve(num_images=1000).max_train_steps == 1000


def test_twice_the_batch_takes_half_the_steps() -> None:
    assert _resolve({"train_batch_size": 8}).max_train_steps * 2 == _resolve().max_train_steps
    accumulated = _resolve({"gradient_accumulation_steps": 2})
    assert accumulated.max_train_steps * 2 == _resolve().max_train_steps


def test_alpha_follows_rank_and_warmup_and_samples_follow_the_steps() -> None:
    config = _resolve({"rank": 8, "max_train_steps": 1000})
    assert (config.alpha, config.lr_warmup_steps, config.sample_every_steps) == (8, 50, 100)
    assert config.effective_learning_rate == config.learning_rate
    assert _resolve({"rank": 8, "alpha": 2}).effective_learning_rate == pytest.approx(5e-5)


def test_the_base_decides_size_and_sampling() -> None:
    base = {"width": 64, "num_inference_steps": 12, "guidance_scale": 5}
    config = _resolve(base_defaults=base)
    assert (config.resolution, config.sample_inference_steps) == (64, 12)
    assert config.sample_guidance_scale == 5
    assert _resolve(architecture="sd2").resolution == 768
    assert _resolve(base_defaults={"native_size": 512, "width": 64}).resolution == 512


def test_a_tiny_base_has_defaults_of_its_own() -> None:
    tiny, large = _resolve(base_defaults=TINY), _resolve()
    assert tiny.learning_rate > large.learning_rate
    assert tiny.control_prompt != large.control_prompt


def test_asked_values_win_over_the_base_and_the_base_over_the_preset() -> None:
    settings = {"rank": 7, "learning_rate": 0.003, "preset": "style"}
    base = TINY | {"training": {"lora": settings, "full": {"learning_rate": 1e-5}}}
    config = _resolve({"rank": 9, "seed": None}, base_defaults=base)
    assert (config.rank, config.learning_rate, config.preset) == (9, 0.003, "style")
    assert config.seed == 0
    assert _resolve(method="full", base_defaults=base).learning_rate == 1e-5


def test_the_method_decides_what_learns_and_how_fast() -> None:
    lora, dreambooth, full = (_resolve(method=m) for m in ("lora", "dreambooth", "full"))
    assert [c.tune for c in (lora, dreambooth, full)] == ["adapters", "adapters", "unet"]
    whole = _resolve({"tune": "unet"}, method="dreambooth")
    assert whole.learning_rate < lora.learning_rate / 10
    assert full.learning_rate < lora.learning_rate / 10
    assert full.use_ema and not lora.use_ema
    # A whole network has no rank that its learning rate would be compared by.
    assert _resolve({"rank": 8, "alpha": 1}, method="full").effective_learning_rate == 3e-6
    with pytest.raises(ConfigError) as error:
        _resolve({"tune": "adapters"}, method="full")
    assert (error.value.field, error.value.code) == ("tune", "not_a_choice")
    with pytest.raises(ConfigError) as error:
        _resolve(method="magic")
    assert (error.value.field, error.value.code) == ("method", "not_a_choice")


def test_a_class_prompt_preserves_the_class_and_preserving_needs_one() -> None:
    assert _resolve({"class_prompt": "a dog"}, method="dreambooth").prior_loss_weight == 1
    without = {"class_prompt": "a dog", "prior_loss_weight": 0}
    assert not _resolve(without, method="dreambooth").has_prior
    assert not _resolve(method="dreambooth").has_prior
    with pytest.raises(ConfigError) as error:
        _resolve({"prior_loss_weight": 1, "class_prompt": " "}, method="dreambooth")
    assert (error.value.field, error.value.code) == ("class_prompt", "required")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("base", [TINY, None])
def test_every_preset_of_every_method_resolves(
    method: str, preset: str, base: dict[str, Any] | None
) -> None:
    for architecture in [name for name, family in ARCHITECTURES.items() if family.trainable]:
        for tune in TUNES[method]:
            config = _resolve(
                {"preset": preset, "tune": tune},
                method=method,
                architecture=architecture,
                base_defaults=base,
            )
            assert (config.preset, config.tune) == (preset, tune)


def test_prodigy_finds_the_learning_rate_itself() -> None:
    base = {"training": {"learning_rate": 0.003, "lr_scheduler": "linear"}}
    config = _resolve({"optimizer": "prodigy"}, base_defaults=base)
    assert (config.learning_rate, config.lr_scheduler) == (1.0, "constant")
    assert config.text_encoder_learning_rate == 1.0
    asked = {"optimizer": "prodigy", "learning_rate": 0.5, "lr_scheduler": "cosine"}
    config = _resolve(asked)
    assert (config.learning_rate, config.lr_scheduler) == (0.5, "cosine")
    assert config.text_encoder_learning_rate == 0.5
    config = _resolve({"optimizer": "prodigy", "text_encoder_learning_rate": 0.2})
    assert (config.learning_rate, config.text_encoder_learning_rate) == (1.0, 0.2)
    with pytest.raises(ConfigError, match="between") as error:
        _resolve({"learning_rate": 0.5})
    assert error.value.params["maximum"] == 0.1


def test_an_optimizer_that_is_not_installed_is_refused_with_its_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip") as error:
        _resolve({"optimizer": "adamw8bit"})
    assert (error.value.field, error.value.code) == ("optimizer", "not_installed")
    assert error.value.params == {"package": "bitsandbytes"}


@pytest.mark.parametrize(("num_images", "count"), [(1, 0), (14, 0), (15, 1), (29, 1), (30, 2)])
def test_pictures_are_held_out_where_there_are_enough(num_images: int, count: int) -> None:
    assert _resolve(num_images=num_images).validation_images == count


def test_one_picture_is_always_left_to_train_on() -> None:
    assert _resolve({"validation_images": 4}, num_images=5).validation_images == 4
    with pytest.raises(ConfigError, match="between 0 and 4") as error:
        _resolve({"validation_images": 5}, num_images=5)
    assert (error.value.field, error.value.code) == ("validation_images", "out_of_range")


def test_choosing_the_best_needs_a_held_out_picture() -> None:
    assert _resolve({"choose": "best"}, num_images=2).validation_images == 1
    for asked in ({"choose": "best"}, {"choose": "best", "validation_images": 0}):
        with pytest.raises(ConfigError) as error:
            _resolve(asked, num_images=1)
        assert (error.value.field, error.value.code) == ("choose", "needs_validation")


def test_a_configuration_survives_json() -> None:
    config = _resolve({"sample_prompts": ["a zorp", " "], "trigger_word": "  zorp  "})
    assert config.sample_prompts == ("a zorp",)
    assert config.trigger_word == "zorp"
    assert TrainingConfig.from_dict(config.as_dict()) == config


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("rank", 0, "out_of_range"),
        ("rank", 4096, "out_of_range"),
        ("rank", 8.5, "wrong_type"),
        ("rank", "8", "wrong_type"),
        ("alpha", 0, "out_of_range"),
        ("alpha", -1, "out_of_range"),
        ("learning_rate", 10, "out_of_range"),
        ("learning_rate", float("nan"), "not_finite"),
        ("learning_rate", float("inf"), "not_finite"),
        ("resolution", 63, "out_of_range"),
        ("resolution", 8192, "out_of_range"),
        ("resolution", 100, "not_a_multiple"),
        ("max_train_steps", 0, "out_of_range"),
        ("max_train_steps", 10**9, "out_of_range"),
        ("max_train_steps", 10**400, "out_of_range"),
        ("train_batch_size", True, "wrong_type"),
        ("seed", -1, "out_of_range"),
        ("seed", 2**32, "out_of_range"),
        ("trigger_word", "x" * 101, "too_long"),
        ("trigger_word", 5, "wrong_type"),
        ("sample_prompts", "a zorp", "wrong_type"),
        ("sample_prompts", ["a"] * 9, "too_many"),
        ("sample_prompts", ["a" * 2001], "too_long"),
        ("sample_prompts", [1], "wrong_type"),
        ("preset", "landscape", "not_a_choice"),
        ("lr_scheduler", "wobble", "not_a_choice"),
        ("mixed_precision", "fp8", "not_a_choice"),
        ("flip", 1, "wrong_type"),
        ("caption_dropout", 1.1, "out_of_range"),
        ("steps", 100, "unknown_field"),
        ("dropout", 0.95, "out_of_range"),
        ("use_dora", "yes", "wrong_type"),
        ("ema_decay", 1, "out_of_range"),
        ("num_class_images", 0, "out_of_range"),
        ("gradient_checkpointing", True, "wrong_type"),
        ("gradient_checkpointing", "maybe", "not_a_choice"),
        ("tune", "unet", "not_a_choice"),
        ("tune", "vae", "not_a_choice"),
        ("class_prompt", "a dog", "not_for_method"),
        ("instance_prompt", "a zorp", "not_for_method"),
        ("prior_loss_weight", 1, "not_for_method"),
        ("num_devices", 0, "out_of_range"),
        ("num_devices", 17, "out_of_range"),
        ("num_devices", 3, "unequal_shares"),
    ],
)
def test_what_cannot_be_used_is_named(field: str, value: Any, code: str) -> None:
    with pytest.raises(ConfigError) as error:
        _resolve({field: value})
    assert (error.value.field, error.value.code) == (field, code)
    assert error.value.message


@pytest.mark.parametrize("architecture", ["svd", "flux", ""])
def test_a_family_that_cannot_be_trained_is_refused(architecture: str) -> None:
    with pytest.raises(ConfigError) as error:
        _resolve(architecture=architecture)
    assert (error.value.field, error.value.code) == ("architecture", "not_trainable")


def test_a_stored_configuration_must_be_complete() -> None:
    values = _resolve().as_dict()
    del values["rank"]
    with pytest.raises(ConfigError, match="rank"):
        TrainingConfig.from_dict(values)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from(sorted(FIELDS)),
        st.one_of(
            st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.text())
        ),
    ),
    st.sampled_from(METHODS),
)
def test_anything_becomes_a_configuration_or_a_named_error(
    asked: dict[str, Any], method: str
) -> None:
    try:
        config = _resolve(asked, method=method)
    except ConfigError as error:
        assert error.field in FIELDS
    else:
        assert TrainingConfig.from_dict(config.as_dict()) == config

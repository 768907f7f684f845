"""Samples and the checkpoints to choose from fall on the same steps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from training_app.trainer.config import resolve_config
from training_app.trainer.rhythm import CHOICES, checkpoint_rhythm

STEPS = st.integers(1, 100_000)


@given(steps=STEPS, native_size=st.sampled_from([64, 512]), asked=st.integers(0, 5000))
def test_every_checkpoint_to_choose_has_samples(steps: int, native_size: int, asked: int) -> None:
    config = resolve_config(
        {"max_train_steps": steps, **({"sample_every_steps": asked} if asked else {})},
        architecture="sd1",
        method="lora",
        base_defaults={"native_size": native_size},
        num_images=20,
    )
    every = checkpoint_rhythm(steps, config.sample_every_steps, config.checkpoint_every_steps)
    assert every % config.sample_every_steps == 0
    assert steps / every <= CHOICES
    if not asked:
        assert every == config.sample_every_steps
        assert steps < 20 or steps // every >= (4 if native_size == 64 else 6)


@given(steps=STEPS, asked=st.integers(1, 5000))
def test_samples_follow_the_checkpoints_that_were_asked_for(steps: int, asked: int) -> None:
    config = resolve_config(
        {"max_train_steps": steps, "checkpoint_every_steps": asked},
        architecture="sd1",
        method="lora",
        num_images=20,
    )
    assert config.sample_every_steps % asked == 0
    assert checkpoint_rhythm(steps, config.sample_every_steps, asked) == asked
    # Not more often than when nothing was asked for.
    assert config.sample_every_steps * CHOICES >= steps

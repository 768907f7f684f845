"""Memory at full size, counted with fake tensors: what a card of 4 and of 8 GiB must hold.

The networks are the published ones, so this takes seconds; no smaller one would tell.
"""

from __future__ import annotations

import pytest

from benchmarks.memory import GIB, lora_step_bytes, sample_bytes


@pytest.mark.parametrize(
    ("architecture", "checkpointing", "gib"), [("sd1", False, 4), ("sdxl", True, 8)]
)
def test_a_lora_step_and_its_samples_fit(architecture: str, checkpointing: bool, gib: int) -> None:
    assert 1 * GIB < lora_step_bytes(architecture, checkpointing=checkpointing) < gib * GIB
    assert sample_bytes(architecture) < gib * GIB

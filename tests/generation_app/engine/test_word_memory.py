"""The words' keys and values: computed once per picture, and never those of another prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from generation_app.engine.resident import Engine
from generation_app.engine.word_memory import remembered_words
from tests.generation_app.engine.conftest import Recorder


def counted(layers: dict[str, torch.nn.Module]) -> Counter[str]:
    """Count how often each layer really computes."""
    counts: Counter[str] = Counter()

    def counting(name: str, layer: torch.nn.Module) -> Callable[..., torch.Tensor]:
        forward = layer.forward

        def count(*given: Any) -> torch.Tensor:
            counts[name] += 1
            answer: torch.Tensor = forward(*given)
            return answer

        return count

    for name, layer in layers.items():
        layer.forward = counting(name, layer)  # type: ignore[method-assign]
    return counts


def test_keys_and_values_are_computed_once_per_picture(
    lora: Path, order: Callable[..., dict[str, Any]]
) -> None:
    engine = Engine()
    engine.run(Recorder(), order(loras=[(lora, 1.0)]))
    unet = engine.pipelines.find("b" * 64, "cpu").pipe.unet  # type: ignore[union-attr]
    layers = {n: m for n, m in unet.named_modules() if n.endswith(("attn2.to_k", "attn2.to_v"))}
    counts = counted(layers)
    engine.run(Recorder(), order(loras=[(lora, 1.0)], seeds=[1, 2], num_inference_steps=5))
    assert layers
    assert counts == Counter(dict.fromkeys(layers, 2))
    # The request after it finds the layers as they were.
    engine.run(Recorder(), order(loras=[(lora, 1.0)], num_inference_steps=5))
    assert counts == Counter(dict.fromkeys(layers, 3))


def test_other_words_are_computed_anew_and_a_failure_forgets_all(
    order: Callable[..., dict[str, Any]],
) -> None:
    engine = Engine()
    engine.run(Recorder(), order())
    unet = engine.pipelines.find("b" * 64, "cpu").pipe.unet  # type: ignore[union-attr]
    layer = unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn2.to_k")
    ones, twos = (torch.full((1, 3, layer.in_features), value) for value in (1.0, 2.0))
    wanted = layer(twos)
    with pytest.raises(ArithmeticError), remembered_words(unet):
        assert layer(ones) is layer(ones)
        assert torch.equal(layer(twos), wanted)
        raise ArithmeticError
    assert "forward" not in layer.__dict__
    assert layer(ones) is not layer(ones)

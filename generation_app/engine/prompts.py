"""Turns prompts into embeddings, each text once.

Embeddings are kept per warm pipeline in an LRU of bounded bytes, keyed by what they depend on:
the text, the layer taken, and the adapters at work in the text encoders. Prompts over the
encoder's length are cut, as plain diffusers cuts them, and ``count_tokens`` tells by how much.

Shapes: prompt_embeds (1, tokens, width), pooled_prompt_embeds (1, width) for SDXL.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch

from generation_app.engine.errors import EngineError
from models_app.architectures import encode_prompts, get_architecture

DEFAULT_CACHE_BYTES = 64 * 1024**2


@dataclass(frozen=True)
class Embeddings:
    """What the text encoders say about one text."""

    prompt_embeds: torch.Tensor
    pooled_prompt_embeds: torch.Tensor | None = None

    @property
    def size_bytes(self) -> int:
        """How much memory this holds."""
        pooled = self.pooled_prompt_embeds
        return self.prompt_embeds.nbytes + (0 if pooled is None else pooled.nbytes)


class PromptCache:
    """An LRU of embeddings, bounded by bytes."""

    def __init__(self, max_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self.max_bytes = max_bytes
        self.size_bytes = 0
        self._entries: OrderedDict[Hashable, Embeddings] = OrderedDict()

    def get(self, key: Hashable) -> Embeddings | None:
        """Return what is kept under a key and mark it as used."""
        found = self._entries.get(key)
        if found is not None:
            self._entries.move_to_end(key)
        return found

    def put(self, key: Hashable, embeddings: Embeddings) -> None:
        """Keep embeddings, letting go of the longest unused ones when there is no room."""
        self._entries[key] = embeddings
        self.size_bytes += embeddings.size_bytes
        while self.size_bytes > self.max_bytes and len(self._entries) > 1:
            _, dropped = self._entries.popitem(last=False)
            self.size_bytes -= dropped.size_bytes


def check_clip_skip(pipe: Any, clip_skip: int) -> None:
    """Refuse to skip more layers than the text encoder has.

    Raises:
        EngineError: ``invalid_request`` with the largest value that works.
    """
    # One hidden state more than there are layers; SDXL starts from the last but one.
    spare = 1 if is_xl(pipe) else 0
    encoders = [pipe.text_encoder, getattr(pipe, "text_encoder_2", None)]
    layers = min(e.config.num_hidden_layers for e in encoders if e is not None)
    if clip_skip > layers - spare:
        raise EngineError("invalid_request", field="clip_skip", maximum=layers - spare)


def is_xl(pipe: Any) -> bool:
    """Whether a pipeline is conditioned the way of SDXL (two encoders, pooled, time ids)."""
    return getattr(pipe, "text_encoder_2", None) is not None


def count_tokens(pipe: Any, text: str) -> tuple[int, int]:
    """Return how many tokens a text has and how many the text encoder reads."""
    tokenizer = pipe.tokenizer
    ids = tokenizer(text, truncation=False, verbose=False).input_ids
    return len(ids), int(tokenizer.model_max_length)


def encode_text(
    pipe: Any, architecture: str, text: str, *, clip_skip: int, negative: bool
) -> Embeddings:
    """Run the text encoders over one text, exactly as the plain diffusers pipeline does.

    Args:
        pipe: A Stable Diffusion or SDXL pipeline.
        architecture: Its family.
        text: The prompt, or the negative prompt.
        clip_skip: How many of the last layers to leave out; 0 for the negative prompt, for which
            diffusers never leaves any out.
        negative: Whether this is the negative prompt.
    """
    if is_xl(pipe):
        return _encode_xl(pipe, text, clip_skip, negative)
    family = get_architecture(architecture)
    conditioning = encode_prompts(family, pipe.components, [text], clip_skip=clip_skip or None)
    return Embeddings(conditioning.tensors["prompt_embeds"])


def _encode_xl(pipe: Any, text: str, clip_skip: int, negative: bool) -> Embeddings:
    device = pipe.unet.device
    if not negative:
        embeds, _, pooled, _ = pipe.encode_prompt(
            text, device=device, do_classifier_free_guidance=False, clip_skip=clip_skip or None
        )
        return Embeddings(embeds, pooled)
    # No negative prompt is None to the pipeline: most SDXL models then take zeros.
    _, embeds, _, pooled = pipe.encode_prompt(
        "", device=device, do_classifier_free_guidance=True, negative_prompt=text or None
    )
    return Embeddings(embeds, pooled)

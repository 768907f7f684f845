"""Turns prompts into embeddings, each text once.

Embeddings are kept per warm pipeline in an LRU of bounded bytes, keyed by what they depend on:
the text, the layer taken, and the adapters at work in the text encoders. Prompts over the
encoder's length are encoded in chunks; beyond ``MAX_CHUNKS`` they are cut, and ``understand`` tells
by how much. The notation of weights is read by ``weighting``.

Shapes: prompt_embeds (1, 77 per chunk, width), pooled_prompt_embeds (1, width) for SDXL.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch

from generation_app.engine.errors import EngineError
from generation_app.engine.weighting import CHUNK_TOKENS, Chunk, Fragment, chunks_of, parse
from models_app.architectures import encode_prompts, get_architecture

DEFAULT_CACHE_BYTES = 64 * 1024**2
MAX_CHUNKS = 16
_LEAST_MEAN = 1e-6


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


@dataclass(frozen=True)
class Understood:
    """How a text was read: its chunks for the longest of the text encoders, and what was cut."""

    fragments: tuple[Fragment, ...]
    tokens: int
    limit: int

    @property
    def is_plain(self) -> bool:
        """Whether plain diffusers reads it just so: no weights, and it fits the encoder."""
        return self.tokens <= CHUNK_TOKENS and all(f.weight == 1 for f in self.fragments)


def understand(pipe: Any, text: str) -> Understood:
    """Read the weights of a text and count its tokens.

    Args:
        pipe: A Stable Diffusion or SDXL pipeline.
        text: The prompt, or the negative prompt.
    """
    fragments = parse(text)
    tokens = sum(len(_tokens(pipe.tokenizer, fragment.text)) for fragment in fragments)
    return Understood(tuple(fragments), tokens, MAX_CHUNKS * CHUNK_TOKENS)


def encode_text(
    pipe: Any, architecture: str, text: str, *, clip_skip: int, negative: bool
) -> Embeddings:
    """Run the text encoders over one text.

    A text without weights that fits the encoder is encoded exactly as the plain diffusers pipeline
    does; any other in chunks, whose embeddings are put one behind the other.

    Args:
        pipe: A Stable Diffusion or SDXL pipeline.
        architecture: Its family.
        text: The prompt, or the negative prompt.
        clip_skip: How many of the last layers to leave out; 0 for the negative prompt, for which
            diffusers never leaves any out.
        negative: Whether this is the negative prompt.
    """
    understood = understand(pipe, text)
    if not understood.is_plain:
        return _encode_chunks(pipe, understood.fragments, clip_skip)
    # The plain text: what was written with a backslash has lost it.
    text = "".join(fragment.text for fragment in understood.fragments)
    if is_xl(pipe):
        return _encode_xl(pipe, text, clip_skip, negative)
    family = get_architecture(architecture)
    conditioning = encode_prompts(family, pipe.components, [text], clip_skip=clip_skip or None)
    return Embeddings(conditioning.tensors["prompt_embeds"])


def lengthened(embeddings: Embeddings, tokens: int, filler: Embeddings) -> Embeddings:
    """Bring embeddings to a length, so that both halves of guidance fit together.

    Args:
        embeddings: Of one text.
        tokens: How many positions they shall have.
        filler: Of the empty text, put behind as often as it takes.
    """
    embeds = embeddings.prompt_embeds
    missing = (tokens - embeds.shape[1]) // filler.prompt_embeds.shape[1]
    parts = [embeds, *[filler.prompt_embeds] * missing]
    return Embeddings(torch.cat(parts, dim=1), embeddings.pooled_prompt_embeds)


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


# --- weights and chunks ---------------------------------------------------------------------------
def _tokens(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(
        text, truncation=False, add_special_tokens=False, verbose=False
    ).input_ids
    return ids


def _encode_chunks(pipe: Any, fragments: tuple[Fragment, ...], clip_skip: int) -> Embeddings:
    """Encode a text chunk by chunk, with weights; the pooled embeddings are those of the first.

    SDXL's two encoders each cut with their own tokenizer, and their embeddings lie side by side.
    """
    xl = is_xl(pipe)
    pairs = [(pipe.tokenizer, pipe.text_encoder)]
    if xl:
        pairs.append((pipe.tokenizer_2, pipe.text_encoder_2))
    sides, pooled = [], None
    for tokenizer, encoder in pairs:
        comma = _tokens(tokenizer, ",")
        cut = chunks_of(
            fragments, lambda text, t=tokenizer: _tokens(t, text), comma[0] if comma else None
        )[:MAX_CHUNKS]
        made = [_encode_chunk(tokenizer, encoder, chunk, clip_skip, xl) for chunk in cut]
        sides.append(torch.cat([embeds for embeds, _ in made], dim=1))
        pooled = made[0][1]
    embeds = torch.cat(sides, dim=-1)
    return Embeddings(embeds, pooled if xl else None)


def _encode_chunk(
    tokenizer: Any, encoder: Any, chunk: Chunk, clip_skip: int, xl: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return a chunk's embeddings (1, 77, width) with its weights, and what the encoder pools."""
    padding = [tokenizer.pad_token_id] * (CHUNK_TOKENS - len(chunk.tokens))
    ids = [tokenizer.bos_token_id, *chunk.tokens, tokenizer.eos_token_id, *padding]
    seen = 2 + len(chunk.tokens)
    mask = None
    if getattr(encoder.config, "use_attention_mask", False):
        mask = torch.tensor([[1] * seen + [0] * len(padding)], device=encoder.device)
    output = encoder(
        torch.tensor([ids], device=encoder.device), attention_mask=mask, output_hidden_states=True
    )
    hidden = output.hidden_states
    if xl:
        embeds = hidden[-(clip_skip + 2)]
    elif clip_skip:
        owner = getattr(encoder, "text_model", encoder)
        embeds = owner.final_layer_norm(hidden[-(clip_skip + 1)])
    else:
        embeds = output[0]
    pooled = output[0] if xl and output[0].ndim == 2 else None
    return _weighted(embeds, chunk).to(encoder.dtype), pooled


def _weighted(embeds: torch.Tensor, chunk: Chunk) -> torch.Tensor:
    """Multiply each token's embedding by its weight and bring the mean back to what it was."""
    if all(weight == 1 for weight in chunk.weights):
        return embeds
    padding = [1.0] * (embeds.shape[1] - 1 - len(chunk.weights))
    weights = torch.tensor([1.0, *chunk.weights, *padding], device=embeds.device)
    heavier = embeds.float() * weights[None, :, None]
    mean = heavier.mean()
    # With weights that cancel each other there is no mean to bring back.
    return heavier * (embeds.float().mean() / mean) if mean.abs() > _LEAST_MEAN else heavier

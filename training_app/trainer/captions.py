"""The prompts that a picture is trained on: its caption, made ready.

A prompt is the trigger word, then the prefix, then the caption. Tags are what commas
separate. Where their order changes, each caption has a fixed number of orders, so that
all prompts can be encoded ahead. Nothing is encoded here, see ``cache``.
"""

from __future__ import annotations

import math
import re

import torch

from training_app.trainer.config import TrainingConfig
from training_app.trainer.randomness import derive_seed


def has_word(text: str, word: str) -> bool:
    """Whether a text contains a word as a word of its own, in any case."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def training_prompts(caption: str, config: TrainingConfig, key: str) -> tuple[str, ...]:
    """All prompts of a picture; the first has the tags in the order of the caption.

    A caption without the trigger word gets it put first; a picture without a caption is
    trained on the instance prompt, or on the trigger word and the prefix alone.

    Args:
        caption: What the picture's owner wrote.
        config: Trigger word, prefix, and what happens to tags.
        key: Names the picture: the same one gets the same orders in every run.
    """
    lead, tags = _split(" ".join(caption.split()) or config.instance_prompt, config)
    start = [*lead, config.caption_prefix] if config.caption_prefix else lead
    keep = config.keep_tokens if config.shuffle_captions else len(tags)
    kept, movable = tags[:keep], tags[keep:]
    return tuple(", ".join([*start, *kept, *order]) for order in _orders(movable, config, key))


def _orders(tags: list[str], config: TrainingConfig, key: str) -> list[tuple[str, ...]]:
    """Different orders of tags, their own first; as many as asked for and there are."""
    wanted = min(config.caption_variants, math.factorial(min(len(tags), 8)))
    orders = {tuple(tags): None}
    # Tags may be equal, then there are fewer orders: it does not draw for ever.
    for attempt in range(16 * wanted):
        if len(orders) == wanted:
            break
        generator = torch.Generator().manual_seed(derive_seed(0, "tags", key, attempt))
        order = torch.randperm(len(tags), generator=generator).tolist()
        orders[tuple(tags[place] for place in order)] = None
    return list(orders)


def _split(caption: str, config: TrainingConfig) -> tuple[list[str], list[str]]:
    """What stays before everything else, and the tags that follow it.

    Where tags keep their order, the caption is one tag and stays as it was written.
    """
    word = config.trigger_word
    if config.shuffle_captions:
        tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
    else:
        tags = [caption] if caption else []
    if not word:
        return [], tags
    if not has_word(f"{config.caption_prefix} {caption}", word):
        return [word], tags
    if config.shuffle_captions:
        # The tag with the trigger word is not shuffled away from the front.
        first = next((tag for tag in tags if has_word(tag, word)), None)
        return ([], tags) if first is None else ([first], [tag for tag in tags if tag != first])
    first, _, rest = caption.partition(",")
    if config.caption_prefix and first.casefold() == word.casefold():
        return [first], [rest.strip()] if rest.strip() else []
    return [], tags

"""Prompts of a run whose text encoders learn: encoded whenever they are needed.

Only their token ids are kept. Runs with frozen text encoders have a ``PromptBank``
instead (see ``cache``), which answers the same calls.

Shape legend: P prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from models_app.architectures import Conditioning, encode_tokens, get_architecture, tokenize
from models_app.loading import load_components
from training_app.trainer.request import TrainingRequest


class LivePrompts:
    """Conditioning that follows the text encoders as they learn.

    Attributes:
        places: Where each prompt lies in the tokens; the empty prompt is one of them.
    """

    def __init__(
        self, request: TrainingRequest, networks: Mapping[str, Any], prompts: Iterable[str]
    ) -> None:
        """Tokenizes the prompts.

        Args:
            request: The run.
            networks: Has the text encoders that learn, by component.
            prompts: The prompts that are trained on; doubles are welcome.

        Raises:
            LoadingError: If the base model's tokenizers cannot be loaded.
        """
        self._family, self._networks = get_architecture(request.architecture), networks
        self._device = request.device
        self._tokenizers = load_components(
            request.base_folder, request.architecture, only=self._family.tokenizers
        )
        unique = list(dict.fromkeys(["", *prompts]))
        self.places = {prompt: place for place, prompt in enumerate(unique)}
        self._tokens, self._keeps = self._tokenize(unique)

    def _tokenize(self, prompts: list[str]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Tokens of prompts, and (P,) what is left of them where empty ones become zeros."""
        tokens = tokenize(self._family, self._tokenizers, prompts)
        keeps = torch.tensor([1.0 if prompt else 0.0 for prompt in prompts])
        return {n: ids.to(self._device) for n, ids in tokens.items()}, keeps.to(self._device)

    def _encode(self, tokens: Mapping[str, torch.Tensor], keeps: torch.Tensor) -> Conditioning:
        encoded = encode_tokens(self._family, self._networks, tokens).tensors
        if not self._family.has_zero_unconditional:
            return Conditioning(encoded)
        return Conditioning(
            {
                name: tensor * keeps.to(tensor.dtype).view(-1, *(1,) * (tensor.dim() - 1))
                for name, tensor in encoded.items()
            }
        )

    def pick(self, rows: torch.Tensor) -> Conditioning:
        """The conditioning of a batch of prompts, given by their places."""
        return self._encode({n: ids[rows] for n, ids in self._tokens.items()}, self._keeps[rows])

    def of(self, prompt: str) -> Conditioning:
        """The conditioning of any one prompt, as a batch of one, without gradients."""
        with torch.no_grad():
            return self._encode(*self._tokenize([prompt]))

"""What learns in a run: which networks, which of their weights, and how fast.

Adapters beside frozen layers, a whole denoiser, and either of them with the text
encoders: a :class:`Learner` makes one thing of all that, a set of fp32 parameters by
component and name. Training, checkpoints and files know nothing more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from models_app.architectures import get_architecture
from models_app.loading import load_components
from training_app.trainer.adapters import ADAPTER_NAME, add_adapters
from training_app.trainer.config import TrainingConfig
from training_app.trainer.fused_adapters import fuse_adapters
from training_app.trainer.request import TrainingRequest


def compute_dtype(config: TrainingConfig, device: str) -> torch.dtype:
    """What the networks compute in; what learns is fp32 in any case."""
    if config.mixed_precision in ("bf16", "fp16"):
        return torch.bfloat16 if config.mixed_precision == "bf16" else torch.float16
    if config.mixed_precision == "auto" and device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.float32


class MovingAverage:
    """The mean of the last steps' weights, newer ones counting more.

    Attributes:
        weights: The averages by name, fp32, on the parameters' device.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], decay: float) -> None:
        """Starts at where the parameters are.

        Args:
            parameters: What is averaged.
            decay: Share of the average that a step keeps, late in the run.
        """
        self.weights = {name: value.detach().clone() for name, value in parameters.items()}
        self._decay = decay
        self._pairs = list(self.weights.values()), [p.data for p in parameters.values()]

    def update(self, step: int) -> None:
        """Takes in the weights after a step, counted from 0; early ones are forgotten faster."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(*self._pairs, 1 - decay)


class Learner:
    """The networks that learn, and what of them learns.

    Attributes:
        networks: The denoiser, and the text encoders if they learn, by component.
        parameters: What learns, fp32, by component and name, sorted.
        average: The moving average of the parameters, if the run keeps one.
    """

    def __init__(self, request: TrainingRequest) -> None:
        """Loads the networks and gives them what learns.

        Args:
            request: The run.

        Raises:
            LoadingError: If the base model cannot be loaded.
        """
        config, self._family = request.config, get_architecture(request.architecture)
        self._config, self._is_whole = config, config.tune == "unet"
        self._is_compiled = False
        encoders = self._family.text_encoders if config.train_text_encoder else ()
        components = (self._family.denoiser, *encoders)
        dtype = torch.float32 if self._is_whole else compute_dtype(config, request.device)
        self.networks: dict[str, Any] = load_components(
            request.base_folder,
            request.architecture,
            only=components,
            dtype=dtype,
            device=request.device,
        )
        found: dict[str, torch.nn.Parameter] = {}
        for component in components:
            found |= self._free(component)
            self.networks[component].train()
        self.parameters = dict(sorted(found.items()))
        self.average = MovingAverage(self.parameters, config.ema_decay) if config.use_ema else None

    def _free(self, component: str) -> dict[str, torch.nn.Parameter]:
        """Lets a network learn, and says which of its weights do."""
        network = self.networks[component]
        if not self._is_whole:
            parameters = add_adapters(network, self._config, component)
            fuse_adapters(network, ADAPTER_NAME)
            return parameters
        network.requires_grad_(True)
        return {f"{component}.{name}": value for name, value in network.named_parameters()}

    @property
    def denoiser(self) -> Any:
        """The network that predicts the noise."""
        return self.networks[self._family.denoiser]

    @property
    def dtype(self) -> torch.dtype:
        """What the weights that do not learn are kept in."""
        return self.denoiser.dtype  # type: ignore[no-any-return]

    def groups(self) -> list[dict[str, Any]]:
        """The parameters for an optimizer: a group for each learning rate.

        Each has ``params`` and its peak rate twice: as ``lr``, which the schedule changes,
        and as ``peak_learning_rate``.
        """
        config, prefix = self._config, f"{self._family.denoiser}."
        rates = {True: config.learning_rate, False: config.text_encoder_learning_rate}
        return [
            {"params": members, "lr": rate, "peak_learning_rate": rate}
            for is_denoiser, rate in rates.items()
            if (
                members := [
                    v for n, v in self.parameters.items() if n.startswith(prefix) == is_denoiser
                ]
            )
        ]

    def weights(self) -> Mapping[str, torch.Tensor]:
        """What the run has come to: the average if it keeps one, else the parameters."""
        return self.parameters if self.average is None else self.average.weights

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Shows what the run has come to: the networks compute with :meth:`weights`."""
        weights = self.weights()
        own = {name: parameter.data for name, parameter in self.parameters.items()}
        for network in self.networks.values():
            network.eval()
        try:
            for name, parameter in self.parameters.items():
                parameter.data = weights[name].data
            with torch.compiler.set_stance("force_eager") if self._is_compiled else nullcontext():
                yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.data = own[name]
            for network in self.networks.values():
                network.train()

    def load(
        self, weights: Mapping[str, torch.Tensor], average: Mapping[str, torch.Tensor] | None
    ) -> None:
        """Sets the parameters, and the average, to saved ones, exactly.

        Raises:
            ValueError: If names or shapes differ.
        """
        copy_weights(self.parameters, weights)
        if self.average is not None:
            copy_weights(self.average.weights, average or {})

    def compile(self, backend: str | None) -> None:
        """Lets the denoiser be compiled for every shape that it meets in training, or no longer.

        Args:
            backend: Who makes the kernels; ``None`` goes the ordinary way again.
        """
        self._is_compiled = backend is not None
        if backend is None:
            self.denoiser._compiled_call_impl = None
        else:
            self.denoiser.compile(dynamic=False, backend=backend)

    def save_memory(self) -> None:
        """Computes activations twice instead of keeping them (gradient checkpointing)."""
        for component, network in self.networks.items():
            if component == self._family.denoiser:
                network.enable_gradient_checkpointing()
            else:
                network.activation_checkpointing_enable({"use_reentrant": False})


def copy_weights(target: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> None:
    """Sets tensors to others of the same names and shapes, in place.

    Raises:
        ValueError: If names or shapes differ.
    """
    if set(target) != set(weights):
        raise ValueError("the weights belong to something else")
    for name, tensor in target.items():
        if tensor.shape != weights[name].shape:
            raise ValueError(f"{name} has another shape")
        tensor.data.copy_(weights[name])

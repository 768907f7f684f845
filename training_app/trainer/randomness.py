"""Where randomness comes from: seeds derived by name, and states that a checkpoint keeps.

Everything random in a step is drawn from a CPU generator whose seed follows from the
run's seed and the number of the step. So a step draws the same however the run came to
it, on any device, and whatever was sampled in between.
"""

from __future__ import annotations

from hashlib import blake2b

import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed of 32 bits for one purpose, unlike those of all other purposes."""
    text = "/".join(str(name) for name in (seed, *names))
    return int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "big")


def step_generator(seed: int, step: int, micro_batch: int) -> torch.Generator:
    """The source of all that is random in one micro-batch of one step."""
    return torch.Generator().manual_seed(derive_seed(seed, "step", step, micro_batch))


def global_states() -> dict[str, torch.Tensor]:
    """The libraries' own random states as bytes, by device."""
    states = {"cpu": torch.get_rng_state()}
    for index in range(torch.cuda.device_count()):
        states[f"cuda:{index}"] = torch.cuda.get_rng_state(index)
    return states


def restore_global_states(states: dict[str, torch.Tensor]) -> None:
    """Sets the libraries' own random states; devices that are not here are left out."""
    for device, state in states.items():
        if device == "cpu":
            torch.set_rng_state(state)
        elif int(device.removeprefix("cuda:")) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, int(device.removeprefix("cuda:")))

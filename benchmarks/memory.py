"""What a LoRA step, a sample, a picture and a clip take at full size, without a GPU.

The networks run with fake tensors, which have shapes and types but no contents, and every
storage is counted from its making to its end. Published figures of a real GPU (SD 1.5 512 px
2.9 GiB, with checkpointing 2.0; SDXL 1024 px 13.0 GiB for a larger adapter, 6.5) lie within a
fifth of what this counts; an allocator's gaps and cuDNN's workspaces are not in it.

    python -m benchmarks.memory
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from benchmarks.full_size import NATIVE_SIZE, make_encoders, make_unet, make_vae
from generation_app.engine.footprint import Need
from training_app.trainer.adapters import ADAPTER_NAME, add_adapters
from training_app.trainer.config import resolve_config
from training_app.trainer.fused_adapters import fuse_adapters

GIB = 2**30
#: CUDA's allocator hands out multiples of this.
_BLOCK_BYTES = 512
_WIDTHS = {"sd1": 768, "sdxl": 2048}


class MemoryCounter(TorchDispatchMode):
    """Counts the bytes of all tensors that live at the same time.

    Attributes:
        now: Bytes alive.
        peak: The most that was alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def add(self, tensor: torch.Tensor) -> None:
        """Counts a tensor's storage until it ends."""
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = -(-storage.nbytes() // _BLOCK_BYTES) * _BLOCK_BYTES
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, size)

    def _remove(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operator and counts what it made."""
        made = func(*args, **(kwargs or {}))
        for each in tree_iter(made):
            if isinstance(each, torch.Tensor):
                self.add(each)
        return made


def _on_meta(make: Callable[[], Any]) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            return make()
    finally:
        torch.set_default_dtype(before)


def _fake(network: torch.nn.Module) -> None:
    """Gives a network on the meta device fake tensors of the same shapes; call in the mode."""
    for module in network.modules():
        for kept in (module._parameters, module._buffers):
            for name, value in kept.items():
                if value is None:
                    continue
                made: torch.Tensor = torch.empty(value.shape, dtype=value.dtype)
                if isinstance(value, torch.nn.Parameter):
                    made = torch.nn.Parameter(made, requires_grad=value.requires_grad)
                kept[name] = made  # type: ignore[assignment]


def lora_step_bytes(architecture: str, *, batch: int = 1, checkpointing: bool = False) -> int:
    """The peak of a LoRA step of rank 16 at the family's own size, bf16 with fp32 adapters.

    Args:
        architecture: ``sd1`` or ``sdxl``.
        batch: Pictures per micro-batch.
        checkpointing: Whether activations are computed twice.
    """
    size = NATIVE_SIZE[architecture]
    config = resolve_config(
        {"rank": 16},
        architecture="sd1",
        method="lora",
        base_defaults={"width": size},
        num_images=16,
    )
    unet = _on_meta(lambda: make_unet(architecture))
    add_adapters(unet, config, "unet")
    fuse_adapters(unet, ADAPTER_NAME)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _fake(unet)
        unet.train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        learning = [parameter for parameter in unet.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learning, fused=True)
        counter = MemoryCounter()
        for parameter in unet.parameters():
            counter.add(parameter)
        with counter:
            # The optimizer's state is there before all steps but the first.
            for parameter in learning:
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            prediction = unet(*_inputs(architecture, batch, size), return_dict=False)[0]
            prediction.float().pow(2).mean().backward()
            optimizer.step()
    return counter.peak


def _inputs(architecture: str, batch: int, size: int) -> tuple[Any, ...]:
    def fake(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, dtype=torch.bfloat16)

    latents = fake(batch, 4, size // 8, size // 8)
    timesteps = torch.zeros(batch, dtype=torch.long)
    embeds = fake(batch, 77, _WIDTHS[architecture])
    if architecture == "sd1":
        return latents, timesteps, embeds
    added = {"text_embeds": fake(batch, 1280), "time_ids": fake(batch, 6)}
    return latents, timesteps, embeds, None, None, None, None, added


def sample_bytes(architecture: str) -> int:
    """The peak of a sample picture beside the network that learns: guided step, then decoding."""
    size = NATIVE_SIZE[architecture]
    unet, vae = _on_meta(lambda: (make_unet(architecture), make_vae(architecture)))
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        counter = MemoryCounter()
        for network in (unet, vae):
            _fake(network)
            for parameter in network.parameters():
                counter.add(parameter)
        with counter:
            unet(*_inputs(architecture, 2, size), return_dict=False)
            vae.decode(torch.empty(1, 4, size // 8, size // 8, dtype=torch.bfloat16))
    return counter.peak


def weights_bytes(architecture: str) -> dict[str, int]:
    """What every network of a family holds in 16 bit, by component."""
    networks = _on_meta(
        lambda: {
            "unet": make_unet(architecture),
            "vae": make_vae(architecture),
            **make_encoders(architecture),
        }
    )
    return {
        name: sum(parameter.nbytes for parameter in network.parameters())
        for name, network in networks.items()
    }


def working_bytes(architecture: str, need: Need) -> dict[str, int]:
    """What UNet and VAE take beside their weights for a request, in 16 bit, by component."""
    side = (need.height // 8, need.width // 8)

    def fake(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, dtype=torch.bfloat16)

    def denoise(unet: Any) -> None:
        if architecture != "svd":
            unet(*_inputs(architecture, need.rows, need.width), return_dict=False)
            return
        timestep = torch.zeros((), dtype=torch.long)
        embeds, ids = fake(need.rows, 1, 1024), fake(need.rows, 3)
        unet(fake(need.rows, need.frames, 8, *side), timestep, embeds, ids, return_dict=False)

    def decode(vae: Any) -> None:
        clip = {"num_frames": need.decoded_at_once} if architecture == "svd" else {}
        vae.decode(fake(need.decoded_at_once, 4, *side), **clip)

    networks = {"unet": (make_unet, denoise), "vae": (make_vae, decode)}
    return {name: _count(make, run, architecture) for name, (make, run) in networks.items()}


def _count(make: Callable[[str], Any], run: Callable[[Any], None], architecture: str) -> int:
    network = _on_meta(lambda: make(architecture))
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        _fake(network)
        counter = MemoryCounter()
        for parameter in network.parameters():
            counter.add(parameter)
        held = counter.now
        with counter:
            run(network)
    return counter.peak - held


#: A picture of SDXL with guidance, and a clip of fourteen frames, eight decoded at a time.
REQUESTS = {
    "sdxl": Need(1024, 1024, rows=2),
    "svd": Need(1024, 576, rows=2, frames=14, decoded_at_once=8),
}


def main() -> None:
    """Prints a table."""
    for architecture in ("sd1", "sdxl"):
        for checkpointing in (False, True):
            peak = lora_step_bytes(architecture, checkpointing=checkpointing)
            words = "with checkpointing" if checkpointing else "plain"
            print(f"{architecture} LoRA step, {words}: {peak / GIB:.2f} GiB", flush=True)
        print(f"{architecture} sample: {sample_bytes(architecture) / GIB:.2f} GiB", flush=True)
    for architecture, need in REQUESTS.items():
        weights, working = weights_bytes(architecture), working_bytes(architecture, need)
        whole = sum(weights.values()) + max(working.values())
        in_turn = max(size + working.get(name, 0) for name, size in weights.items())
        words = f"{whole / GIB:.2f} GiB, networks in turn {in_turn / GIB:.2f} GiB"
        print(f"{architecture} {need.frames} frames of {need.width}x{need.height}: {words}")


if __name__ == "__main__":
    main()

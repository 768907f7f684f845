"""An adapter layer of our own for the hot loop: the same numbers as peft's, fewer operators.

peft goes on to define configuration, state and export: the parameters stay its own, only
the way through its layers is replaced. Layers that do more than plain LoRA on a linear
layer (dropout, DoRA, convolutions) keep peft's way.

Shape legend: N rows (pictures times tokens), I and O inputs and outputs of the layer,
r rank.
Source: Hu et al. 2021 (arXiv:2106.09685), y = W x + b + s · B A x with s = alpha / rank;
the gradients are those of this line, written out.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLinear


class _FusedLinear(torch.autograd.Function):
    """The line above as three matrix products forward and five backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """Computes y in the frozen weight's type.

        Args:
            ctx: Keeps what the gradients need.
            x: (…, I).
            weight: (O, I), frozen.
            bias: (O,), frozen, or none.
            down: A, (r, I).
            up: B, (O, r).
            scaling: s.

        Returns:
            (…, O).
        """
        dtype = weight.dtype
        rows = x.reshape(-1, x.shape[-1]).to(dtype)  # (N, I)
        narrow_down, narrow_up = down.to(dtype), up.to(dtype)
        inner = rows @ narrow_down.t()  # (N, r)
        y = rows @ weight.t() if bias is None else torch.addmm(bias, rows, weight.t())
        y.addmm_(inner, narrow_up.t(), alpha=scaling)
        ctx.save_for_backward(rows, weight, narrow_down, narrow_up, inner)
        ctx.scaling, ctx.x_dtype, ctx.master_dtype = scaling, x.dtype, down.dtype
        ctx.shape = x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of x, A and B; the frozen weight and bias have none."""
        rows, weight, down, up, inner = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, weight.shape[0]).to(weight.dtype)  # (N, O)
        # With beta = 0 the first argument only lends its shape.
        of_up = torch.addmm(up, gradient.t(), inner, beta=0, alpha=ctx.scaling)
        of_inner = torch.addmm(inner, gradient, up, beta=0, alpha=ctx.scaling)
        of_down = of_inner.t() @ rows
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (gradient @ weight).addmm_(of_inner, down).view(ctx.shape).to(ctx.x_dtype)
        return of_x, None, None, of_down.to(ctx.master_dtype), of_up.to(ctx.master_dtype), None


def _forward(layer: Any, adapter: str, x: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
    if layer.disable_adapters or layer.merged or layer.active_adapters != [adapter]:
        return PeftLinear.forward(layer, x, *given, **named)  # type: ignore[no-any-return]
    base = layer.base_layer
    return _FusedLinear.apply(  # type: ignore[no-any-return, no-untyped-call]
        x,
        base.weight,
        base.bias,
        layer.lora_A[adapter].weight,
        layer.lora_B[adapter].weight,
        layer.scaling[adapter],
    )


def fuse_adapters(network: torch.nn.Module, adapter: str) -> int:
    """Replaces the way through every plain LoRA layer of one adapter.

    Args:
        network: A network with peft's layers in it.
        adapter: Name of the adapter that is trained; beside it nothing may be active.

    Returns:
        How many layers were replaced.
    """
    replaced = 0
    for layer in network.modules():
        if not isinstance(layer, PeftLinear) or adapter not in layer.lora_A:
            continue
        is_plain = isinstance(layer.lora_dropout[adapter], torch.nn.Identity)
        if not is_plain or adapter in layer.lora_variant or layer.lora_bias.get(adapter):
            continue
        if type(layer.base_layer) is not torch.nn.Linear:
            continue
        layer.forward = partial(_forward, layer, adapter)  # type: ignore[method-assign]
        replaced += 1
    return replaced

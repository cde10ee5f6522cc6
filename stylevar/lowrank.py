"""One projection for plain and LoRA-adapted linear layers that multiplies only the rows in use.

With adapters the forward pass multiplies by the effective weight W + s B A, and the backward pass keeps the gradient in
factored form, dA = s (dy B)^T x and dB = s dy^T (x A^T), so neither a second matmul in the forward pass nor a dense dW is
needed. Weights, adapters and their gradients stay fp32, whatever dtype a layer multiplies in (`compute_in`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylevar.products import linear, matmul

if TYPE_CHECKING:
    from peft.tuners.lora import Linear as LoraLinear

ADAPTER = "default"
# Attributes that the functions below set on a layer.
_EFFECTIVE = "_effective_weight"
_COMPUTE = "_compute_dtype"


class _FactoredLinear(torch.autograd.Function):
    """y = f(x) W_eff^T + bias with gradients for x, A and B; `effective` is W_eff, already computed, and `bias` is frozen.

    The forward pass makes the same call as a layer without adapters, so adapters without effect give identical bits. The
    backward pass recomputes f, which is cheap: f(x) would be a third of all saved activations.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        effective: Tensor,
        bias: Tensor | None,
        lora_a: Tensor,
        lora_b: Tensor,
        scale: float,
        ready: Callable[..., Tensor],
        *constants: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, effective, lora_a, lora_b, *constants)
        ctx.scale, ctx.ready = scale, ready
        return linear(ready(x, *constants), effective, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, effective, lora_a, lora_b, *constants = ctx.saved_tensors
        dy = grads[0]
        with torch.enable_grad():
            given = x.detach().requires_grad_(ctx.needs_input_grad[0])
            ready = ctx.ready(given, *constants)
        dy_rows, rows = dy.flatten(0, -2), ready.detach().flatten(0, -2)
        d_a = ctx.scale * matmul(matmul(dy_rows, lora_b.to(dy.dtype)).t(), rows).float()
        d_b = ctx.scale * matmul(dy_rows.t(), matmul(rows, lora_a.to(dy.dtype).t())).float()
        dx = None
        if ctx.needs_input_grad[0]:
            (dx,) = torch.autograd.grad(ready, given, matmul(dy, effective))
        return dx, None, None, d_a, d_b, None, None, *(None for _ in constants)


def tanh_gelu(x: Tensor, dtype: torch.dtype) -> Tensor:
    return F.gelu(x, approximate="tanh").to(dtype)


def is_adapted(layer: nn.Module) -> TypeGuard[LoraLinear]:
    """Whether `layer` is PEFT's LoRA layer around a linear one."""
    # Not asked by class: PEFT takes seconds to load, and a model without adapters does not need it.
    return hasattr(layer, "lora_A")


def base_linear(layer: nn.Module) -> nn.Linear:
    """The plain linear layer beneath any adapter."""
    return cast(nn.Linear, layer.base_layer if is_adapted(layer) else layer)


def base_weight(layer: nn.Module) -> Tensor:
    """The frozen weight [out, in] beneath any adapter."""
    return base_linear(layer).weight


def factors(layer: LoraLinear) -> tuple[Tensor, Tensor, float]:
    """(A [r, in], B [out, r], s) of a LoRA layer."""
    lora_a, lora_b = (cast(nn.Linear, side[ADAPTER]) for side in (layer.lora_A, layer.lora_B))
    return lora_a.weight, lora_b.weight, float(layer.scaling[ADAPTER])


def compute_in(layer: nn.Module, dtype: torch.dtype) -> None:
    """Make `project` multiply and return its result in `dtype`; weights keep their own dtype."""
    setattr(layer, _COMPUTE, dtype)


def compute_dtype(layer: nn.Module) -> torch.dtype:
    """The dtype that `project` multiplies in; the weight's own unless `compute_in` was called."""
    return getattr(layer, _COMPUTE, base_weight(layer).dtype)


def keep_effective(layer: LoraLinear, weight: Tensor | None) -> None:
    """Make `project` use `weight`, the effective weight [rows in use, in]; with None it computes its own again."""
    setattr(layer, _EFFECTIVE, weight)


def kept_effective(layer: LoraLinear) -> Tensor | None:
    """The weight last given to `keep_effective`."""
    return getattr(layer, _EFFECTIVE, None)


def effective_rows(layer: LoraLinear, rows: slice) -> Tensor:
    """Rows of W + s B A, detached, always computed from the unchanged base so that errors do not accumulate."""
    lora_a, lora_b, scale = factors(layer)
    with torch.no_grad():
        return torch.addmm(base_weight(layer)[rows], lora_b[rows], lora_a, alpha=scale)


def project(
    layer: nn.Module,
    x: Tensor,
    rows: slice | None = None,
    bias: Tensor | None = None,
    prepare: Callable[..., Tensor] | None = None,
    constants: tuple[Tensor, ...] = (),
) -> Tensor:
    """x [..., in] -> [..., len(rows)] in the layer's compute dtype: `layer` restricted to `rows` of its weight.

    Args:
        layer: an `nn.Linear`, or PEFT's LoRA layer around one. Switched-off adapters are not applied.
        rows: the outputs to compute; all by default.
        bias: [len(rows)], used in place of the layer's own.
        prepare: `prepare(x, *constants, dtype)` replaces x, in the compute dtype. Its result is not kept for the backward
            pass of an adapted layer, which calls it again.
    """
    rows = slice(None) if rows is None else rows
    if bias is None:
        own = base_linear(layer).bias
        bias = None if own is None else own[rows]
    dtype = compute_dtype(layer)
    bias = None if bias is None else bias.to(dtype)

    def ready(given: Tensor, *constants: Tensor) -> Tensor:
        return given.to(dtype) if prepare is None else prepare(given, *constants, dtype)

    if not is_adapted(layer) or layer.disable_adapters:
        return linear(ready(x, *constants), base_weight(layer)[rows].to(dtype), bias)
    effective = kept_effective(layer)
    if effective is None:
        effective = effective_rows(layer, rows).to(dtype)
    if not torch.is_grad_enabled():
        return linear(ready(x, *constants), effective, bias)
    if any(constant.requires_grad for constant in constants):
        raise ValueError("an adapted layer computes no gradient for the constants of `prepare`: freeze them")
    lora_a, lora_b, scale = factors(layer)
    return _FactoredLinear.apply(x, effective, bias, lora_a, lora_b[rows], scale, ready, *constants)

"""Matrix products with the faster of torch's two CPU libraries.

torch multiplies fp32 matrices with MKL, which uses AVX-512 only on Intel's CPUs. On others with AVX-512, oneDNN, which torch
uses for convolutions, takes half the time. Everywhere else, the functions here are torch's own.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CPU_FACTS = Path("/proc/cpuinfo")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in], weight [out, in], bias [out] -> [..., out]; differentiable, like `F.linear`."""
    if not _by_onednn(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        result: Tensor = _Linear.apply(x, weight, bias)
        return result
    return _onednn(x, weight, bias)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a [..., k], b [k, n] -> [..., n], without gradients."""
    return _onednn(a, b.t(), None) if _by_onednn(a, b) else a @ b


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), dy = ctx.saved_tensors, grads[0]
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = dy.flatten(0, -2)
        dx = matmul(dy, weight) if of_x else None
        d_weight = matmul(rows.t(), x.flatten(0, -2)) if of_weight else None
        return dx, d_weight, rows.sum(0) if of_bias else None


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and onednn_is_faster()
    )


@cache
def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies fp32 matrices with wider vectors than MKL on this CPU."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return wide and CPU_FACTS.is_file() and "GenuineIntel" not in CPU_FACTS.read_text(encoding="utf-8")

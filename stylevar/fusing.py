"""Chains of elementwise operations as single kernels, where `torch.compile` works.

Between two matrix products or convolutions, the model normalises, scales, shifts, rounds and adds. One by one, these
operations read and write whole activations up to six times. On a GPU in bfloat16, that should take almost as long as the
products. Only these chains are compiled, which takes seconds, serves all batch sizes, and leaves the adapters, caches and
checkpoints around them as they are.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Generic, ParamSpec

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")

logger = logging.getLogger(__name__)

_FORMS = 64
"""Compiled forms of a function (by dtypes, dimensions, and gradients) before torch gives up on it; its default is 8."""
_on = False


class Fusible(Generic[Arguments]):
    """A function from tensors to a tensor. After `fuse(True)`, calls run the compiled form of `fused`, or of itself."""

    def __init__(self, plain: Callable[Arguments, Tensor], fused: Callable[Arguments, Tensor] | None = None) -> None:
        """`fused` computes the same in a form that compiles to fewer passes over memory."""
        self._plain, self._source = plain, fused or plain
        self._compiled: Callable[Arguments, Tensor] | None = None
        functools.update_wrapper(self, plain)

    def __call__(self, *arguments: Arguments.args, **named: Arguments.kwargs) -> Tensor:
        first = arguments[0]
        if not _on or (isinstance(first, Tensor) and first.is_meta):
            return self._plain(*arguments, **named)
        if self._compiled is None:
            self._compiled = torch.compile(self._source)
        return self._compiled(*arguments, **named)


def fusible(plain: Callable[Arguments, Tensor]) -> Fusible[Arguments]:
    """Decorator: see `Fusible`."""
    return Fusible(plain)


def fuse(wanted: bool, device: torch.device) -> bool:
    """Switch fusing on or off for the whole process. Returns whether it is on.

    It stays off, with a warning, if torch cannot compile for `device`: a GPU needs Triton, a CPU a C++ compiler.
    """
    global _on
    _on = wanted and _compiles(device)
    return _on


def fusing() -> bool:
    """Whether fusing is on."""
    return _on


@functools.cache
def _compiles(device: torch.device) -> bool:
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _FORMS)
    try:
        torch.compile(lambda x: (x + 1).sin())(torch.zeros(8, device=device))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        logger.warning("--compile: torch.compile fails on %s (%s): running without it", device, reason)
        return False
    return True

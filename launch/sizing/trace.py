"""What work on the meta device takes: FLOPs, bytes that are live at once, bytes that autograd keeps."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

ResultT = TypeVar("ResultT")


def count_flops_of(work: Callable[[], ResultT]) -> tuple[ResultT, int]:
    """What `work` returns, and its FLOPs: 2 x the multiply-adds of matrix products, attention and convolutions."""
    with shapes_only(), FlopCounterMode(display=False) as counter:
        result = work()
    return result, counter.get_total_flops()


def peak_bytes(work: Callable[[], ResultT]) -> tuple[ResultT, int]:
    """What `work` returns, and the most bytes that were live at once of what it allocated; its result counts.

    Work space inside a kernel is not seen.
    """
    with shapes_only(fused_attention=True), _LiveBytes() as live:
        result = work()
    return result, live.peak


def saved_bytes(work: Callable[[], ResultT], given: Iterable[Tensor]) -> tuple[ResultT, int]:
    """What `work` returns, and the bytes that autograd keeps for its backward pass, beyond the tensors `given`.

    Each storage counts once, however many saved tensors lie in it.
    """
    before = WeakIdKeyDictionary({tensor.untyped_storage(): None for tensor in given})
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage not in before:
            kept[id(storage)] = storage
        return tensor

    with shapes_only(fused_attention=True), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = work()
    return result, sum(storage.nbytes() for storage in kept.values())


@contextmanager
def shapes_only(fused_attention: bool = False) -> Iterator[None]:
    """Inside, functions step aside on the meta device for what is slow there or unlike a real device.

    Bicubic resizing has no kernel of its own there (and no product that would count). With `fused_attention`, attention
    runs as one kernel, as it does on CPUs and GPUs, without a matrix of scores in memory.

    The functions themselves are exchanged, for this process: a mode of torch's would not reach blocks that the backward
    pass runs again.
    """
    interpolate, attention = F.interpolate, F.scaled_dot_product_attention

    def resized(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if x.is_meta and kwargs.get("mode") == "bicubic":
            return x.new_empty(*x.shape[:2], *kwargs["size"])
        return interpolate(x, *args, **kwargs)

    def attended(q: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return (_fused_attention if q.is_meta and fused_attention else attention)(q, *args, **kwargs)

    functions: Any = F
    functions.interpolate, functions.scaled_dot_product_attention = resized, attended
    try:
        yield
    finally:
        functions.interpolate, functions.scaled_dot_product_attention = interpolate, attention


def _fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    # The CPU's kernel: its output and what it saves are of the same sizes as those of the GPU's fused kernels.
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(q, k, v, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


class _LiveBytes(TorchDispatchMode):
    """Adds up storages as they appear and go."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        for storage in _storages((args, kwargs)):  # what comes in unseen was there before
            self._known[storage] = None
        result = func(*args, **kwargs)
        for storage in _storages(result):
            if storage not in self._known:
                self._known[storage] = None
                size = storage.nbytes()
                self.now += size
                weakref.finalize(storage, self._freed, size)
        self.peak = max(self.peak, self.now)
        return result

    def _freed(self, size: int) -> None:
        self.now -= size


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor)]

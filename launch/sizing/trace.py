"""What work on the meta device takes: FLOPs, bytes that are live at once, bytes that autograd keeps."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

ResultT = TypeVar("ResultT")


def count_flops_of(work: Callable[[], ResultT]) -> tuple[ResultT, int]:
    """What `work` returns, and its FLOPs: 2 x the multiply-adds of matrix products, attention and convolutions."""
    with ShapesOnly(), FlopCounterMode(display=False) as counter:
        result = work()
    return result, counter.get_total_flops()


def peak_bytes(work: Callable[[], ResultT]) -> tuple[ResultT, int]:
    """What `work` returns, and the most bytes that were live at once of what it allocated; its result counts.

    Work space inside a kernel is not seen.
    """
    with _with_fused_attention(), _LiveBytes() as live:
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

    with _with_fused_attention(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = work()
    return result, sum(storage.nbytes() for storage in kept.values())


class ShapesOnly(TorchDispatchMode):
    """Skips what is slow on the meta device for its values alone: bicubic upsampling, which multiplies no matrices."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.upsample_bicubic2d.default and args[0].is_meta:
            x, size = args[:2]
            return x.new_empty(*x.shape[:2], *size)
        return func(*args, **(kwargs or {}))


@contextmanager
def _with_fused_attention() -> Iterator[None]:
    """Inside, attention on the meta device is one kernel that holds no matrix of scores, as on CPUs and GPUs.

    torch has no such kernel there and would multiply the scores out. Tensors of other devices are not affected.
    """
    # torch has no public way to take a registration back.
    with ShapesOnly(), torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("scaled_dot_product_attention", _fused_attention, "AutogradMeta")
        yield


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    # The output of the CPU's kernel and what it saves are as large as those of the GPU's fused kernels.
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    if query.ndim == 3:  # of one head, as in the VQ-VAE: the kernel's backward pass knows four dimensions only
        query, key, value = (x.unsqueeze(1) for x in (query, key, value))
        return kernel(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0].squeeze(1)
    return kernel(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


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

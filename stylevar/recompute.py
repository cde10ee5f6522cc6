"""Activation checkpointing of transformer blocks: memory for a second forward pass (Chen et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def recomputed(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Forward passes inside keep only each block's inputs; the backward pass runs the block again for the rest.

    The backward pass may come after the context has ended. Whatever the blocks read besides their inputs (weights, merged
    weights) must be the same then.
    """
    wrapped = list(blocks)
    try:
        for block in wrapped:
            # Of this instance alone, and gone again below: names and parameters stay as they are.
            block.__dict__["forward"] = _checkpointed(block.forward)
        yield
    finally:
        for block in wrapped:
            block.__dict__.pop("forward", None)


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *inputs, **options: checkpoint(forward, *inputs, use_reentrant=False, **options)

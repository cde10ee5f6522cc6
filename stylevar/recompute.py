"""Activation checkpointing of transformer blocks: memory for a second forward pass (Chen et al. 2016)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from stylevar.block import Block


@contextmanager
def recomputed(blocks: Iterable[Block]) -> Iterator[None]:
    """Forward passes inside keep only each block's inputs; the backward pass runs the block again for the rest.

    The backward pass may come after the context has ended. Whatever the blocks read besides their inputs (weights, effective
    weights) must be the same then.
    """
    chosen = list(blocks)
    try:
        for block in chosen:
            block.recompute = True
        yield
    finally:
        for block in chosen:
            block.recompute = False

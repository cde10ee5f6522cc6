"""Activation checkpointing of transformer blocks: saves memory at the cost of a second forward pass (Chen et al. 2016)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from stylevar.block import Block


@contextmanager
def recomputed(blocks: Iterable[Block]) -> Iterator[None]:
    """Forward passes inside the context keep only each block's inputs; the backward pass recomputes the rest.

    The backward pass may run after the context has ended. Everything else that the blocks read (weights, effective weights)
    must be unchanged by then.
    """
    chosen = list(blocks)
    try:
        for block in chosen:
            block.recompute = True
        yield
    finally:
        for block in chosen:
            block.recompute = False

"""Keys and values of the scales sampled so far."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stylevar.config import HEAD_DIM


class BlockCache(NamedTuple):
    """One block's keys and values [B, G, H, L, 64]; the first `filled` tokens are valid."""

    keys: Tensor
    values: Tensor
    filled: int

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store a scale's keys and values [B, G, H, T, 64]; returns all keys and values so far."""
        end = self.filled + k.shape[-2]
        self.keys[..., self.filled : end, :] = k
        self.values[..., self.filled : end, :] = v
        return self.keys[..., :end, :], self.values[..., :end, :]


class KVCache:
    """Preallocated keys and values of every block, [depth] x [B, G, H, L, 64]; each scale is appended once."""

    def __init__(
        self, depth: int, batch: int, group: int, heads: int, length: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.store = torch.empty((depth, 2, batch, group, heads, length, HEAD_DIM), device=device, dtype=dtype)
        self.filled = 0

    def block(self, number: int) -> BlockCache:
        """The cache of one block, at the current scale."""
        keys, values = self.store[number]
        return BlockCache(keys, values, self.filled)

    def advance(self, tokens: int) -> None:
        """End a scale."""
        self.filled += tokens

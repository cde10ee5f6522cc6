"""A transformer block: adaptive layer norm, blended cross-attention, feed-forward.

Shapes: B conditions, G trajectories of each, T tokens (of one scale, or all L), C width, H heads of 64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stylevar.attention import BlendedAttention, Span
from stylevar.cache import BlockCache
from stylevar.config import ModelConfig
from stylevar.lowrank import project, tanh_gelu
from stylevar.norm import modulate, residual


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """x [B, G, T, C] and its modulation [B, 1, 1, C] -> [B, G, T, C]."""
        hidden = project(self.fc1, x, prepare=modulate, constants=(scale, shift))
        return project(self.fc2, hidden, prepare=tanh_gelu)


class DropPath(nn.Module):
    """Drop a residual branch per trajectory while training (stochastic depth, Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        return x * (torch.rand(*x.shape[:2], 1, 1, device=x.device) < keep) / keep


class Block(nn.Module):
    """adaLN-zero, blended cross-attention, FFN."""

    def __init__(self, config: ModelConfig, drop_path: float) -> None:
        super().__init__()
        width = config.width
        self.shared_aln = config.shared_aln
        self.recompute = False
        """Keep only the inputs for the backward pass, which recomputes the rest (see `recompute.py`)."""
        self.attn = BlendedAttention(width, config.depth, config.attn_l2_norm)
        self.ffn = FeedForward(width)
        self.drop_path = DropPath(drop_path)
        if config.shared_aln:
            self.ada_gss = nn.Parameter(torch.empty(1, 1, 6, width))
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def adaln(self, cond: Tensor) -> Tensor:
        """cond [B, C] (or the shared projection [B, 6C] with `shared_aln`) -> [6, B, 1, 1, C]: gamma, scale, shift pairs."""
        vectors = (cond + self.ada_gss.flatten()) if self.shared_aln else self.ada_lin(cond)
        return vectors.view(cond.shape[0], 6, 1, 1, -1).transpose(0, 1)

    def queries(self, guides: Tensor, adaln: Tensor) -> Tensor:
        """Guides [B, 2T, C] -> queries [B, H, 2T, 64]."""
        return self.attn.queries(guides, adaln[2].squeeze(1), adaln[4].squeeze(1))

    def forward(
        self,
        x: Tensor,
        adaln: Tensor,
        q: Tensor,
        alpha: Tensor,
        spans: Sequence[Span],
        cache: BlockCache | None = None,
    ) -> Tensor:
        """x [B, G, T, C] -> [B, G, T, C]; pass a `cache` when generating scale by scale."""
        if self.recompute:
            return checkpoint(self._forward, x, adaln, q, alpha, spans, cache, use_reentrant=False)
        return self._forward(x, adaln, q, alpha, spans, cache)

    def _forward(
        self, x: Tensor, adaln: Tensor, q: Tensor, alpha: Tensor, spans: Sequence[Span], cache: BlockCache | None
    ) -> Tensor:
        gamma1, gamma2, scale1, scale2, shift1, shift2 = adaln
        k, v = self.attn.keys_values(x, scale1, shift1)
        if cache is not None:
            k, v = cache.append(k, v)
        x = residual(x, gamma1, self.drop_path(self.attn(q, k, v, alpha, spans)))
        return residual(x, gamma2, self.drop_path(self.ffn(x, scale2, shift2)))


class Blocks(nn.ModuleList):
    """The blocks in order: a ModuleList whose items type checkers know to be blocks."""

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[Block]: ...

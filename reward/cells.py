"""Maps of where a distance comes from, over the cells of one grid."""

from __future__ import annotations

import torch
from torch import Tensor

CELLS = 16
"""Cells per side of the grid to which every map is brought."""


def to_grid(values: Tensor, side: int = CELLS) -> Tensor:
    """Map fp32 [N, h, w] -> [N, side, side] with the same mean: each cell averages whatever lies within it."""
    rows, columns = (_overlaps(side, size).to(values) for size in values.shape[-2:])
    return rows @ values @ columns.T


def _overlaps(cells: int, others: int) -> Tensor:
    """A line cut into `cells` equal parts, and again into `others`: the share of each part that lies in each of the other
    parts, [cells, others]."""
    mine, theirs = others * torch.arange(cells + 1), cells * torch.arange(others + 1)
    first = torch.maximum(mine[:-1, None], theirs[:-1])
    last = torch.minimum(mine[1:, None], theirs[1:])
    return (last - first).clamp_min(0) / others

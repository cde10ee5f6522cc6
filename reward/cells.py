"""Maps of a distance over the cells of a fixed grid."""

from __future__ import annotations

import torch
from torch import Tensor

CELLS = 16
"""Cells per side of the grid that every map is resampled to."""


def to_grid(values: Tensor, side: int = CELLS) -> Tensor:
    """Resample a map fp32 [N, h, w] to [N, side, side] by area averaging, which keeps the mean."""
    rows, columns = (_overlaps(side, size).to(values) for size in values.shape[-2:])
    return rows @ values @ columns.T


def _overlaps(cells: int, others: int) -> Tensor:
    """Divide a line into `cells` equal parts and into `others` equal parts: the share of each of the former that lies in
    each of the latter, [cells, others]."""
    mine, theirs = others * torch.arange(cells + 1), cells * torch.arange(others + 1)
    first = torch.maximum(mine[:-1, None], theirs[:-1])
    last = torch.minimum(mine[1:, None], theirs[1:])
    return (last - first).clamp_min(0) / others

"""What the processes of a data-parallel run share; alone, a process is rank 0 of 1."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def rank_and_world() -> tuple[int, int]:
    """This process's number, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of `values` over all processes, on every one of them. All have to call it."""
    if rank_and_world()[1] > 1:
        dist.all_reduce(values)
    return values

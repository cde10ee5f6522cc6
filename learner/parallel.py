"""Communication of data-parallel processes. Without a process group, a process is rank 0 of 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


def rank_and_world() -> tuple[int, int]:
    """This process's rank, and the number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of `values` over all processes, on every process. All processes must call it."""
    if rank_and_world()[1] > 1:
        dist.all_reduce(values)
    return values


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Sum the gradients over all processes, in place; one without gradients adds zeros. All processes must call it."""
    if rank_and_world()[1] == 1:
        return
    running = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        running.append(dist.all_reduce(parameter.grad, async_op=True))
    for work in running:
        if work is not None:
            work.wait()


def gather_over_ranks(value: T) -> list[T]:
    """The values of all processes, in rank order. All processes must call it. Tensors should be on CPU."""
    world = rank_and_world()[1]
    if world == 1:
        return [value]
    values: list[T | None] = [None] * world
    dist.all_gather_object(values, value)
    return [one for one in values if one is not None]

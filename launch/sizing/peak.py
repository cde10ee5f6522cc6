"""How fast this machine multiplies matrices: an upper bound for work that consists of matrix products."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch

from stylevar.config import Precision
from stylevar.products import matmul

SIDES = (1024, 1536, 2048)
"""Large enough to keep the cores of a CPU busy, small enough to be quick."""
GPU_SIDES = (4096, 8192)


def product_peak(
    device: torch.device, dtype: torch.dtype = torch.float32, sides: Sequence[int] | None = None, repeats: int = 3
) -> float:
    """FLOP/s of square matrix products with the process's threads and settings: the best of `sides`, each a median."""
    if sides is None:
        sides = GPU_SIDES if device.type == "cuda" else SIDES
    return max(_rate(device, dtype, side, repeats) for side in sides)


def product_rate(device: torch.device, precision: Precision, threads: int) -> float:
    """`product_peak` in a run's precision, with `threads` CPU threads."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        return product_peak(device, torch.bfloat16 if precision == "bf16" else torch.float32)
    finally:
        torch.set_num_threads(before)


def _rate(device: torch.device, dtype: torch.dtype, side: int, repeats: int) -> float:
    matrix = torch.rand(side, side, device=device, dtype=dtype)
    passed = []
    for _ in range(repeats + 1):
        start = _now(device)
        matmul(matrix, matrix)
        passed.append(_now(device) - start)
    return 2 * side**3 / statistics.median(passed[1:])  # the first one warms up


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()

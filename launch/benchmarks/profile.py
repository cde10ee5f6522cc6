"""The operations that take the most time, as torch.profiler sees them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from stylevar.atomic import file_aside
from stylevar.errors import UserError

ROWS = 60


def write_profile(work: Callable[[], object], device: torch.device, path: Path) -> None:
    """Run `work` once, and write a table of its slowest operations, by time on the device.

    Raises UserError if the file cannot be written.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        work()
    order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=80)
    try:
        with file_aside(path) as aside:
            aside.write_text(table, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--profile {path} cannot be written ({error.strerror}): choose another place") from error

"""Choose the device and the number of threads."""

from __future__ import annotations

import torch

from launch.common.cpus import available_cpus
from stylevar.errors import UserError


def choose_device(name: str) -> torch.device:
    """The device of `--device`: auto uses a GPU if there is one. UserError if cuda is asked for but missing."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this process sees no GPU; give --device cpu, or run where one is free")
    return torch.device(name)


def set_threads(threads: int) -> None:
    """Set the number of CPU threads; 0 for torch's default, but at most one thread per available CPU."""
    torch.set_num_threads(threads or min(torch.get_num_threads(), available_cpus()))

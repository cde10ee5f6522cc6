"""Which device a program runs on, and with how many threads."""

from __future__ import annotations

import torch

from launch.common.cpus import available_cpus
from stylevar.errors import UserError


def choose_device(name: str) -> torch.device:
    """The device of `--device`: auto uses a GPU if there is one. UserError if cuda is asked for and not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this process sees no GPU; give --device cpu, or run where one is free")
    return torch.device(name)


def set_threads(threads: int) -> None:
    """Compute with so many CPU threads; 0 for as many as torch takes by itself, at most one per CPU that is available."""
    torch.set_num_threads(threads or min(torch.get_num_threads(), available_cpus()))

"""The largest model and the largest image of the published recipe that fit a GPU, found without one."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from launch.configs.cluster import ROLES
from launch.configs.grpo import GrpoConfig
from launch.configs.shape import sides_up_to
from launch.sizing.budget import Choice, choose
from stylevar.config import ModelConfig, default_alphas

DEPTHS = range(2, 61, 2)
SIZES = (64, 128, 192, 256, 320, 384, 448, 512, 640, 768, 1024)
"""Depths, and image sizes in pixels, that are tried."""


@dataclass(frozen=True)
class Fit:
    """What fits into `memory_gb`: the largest depth, the largest image size in pixels, and the micro-batch at the published
    size; 0 for none."""

    memory_gb: float
    depth: int
    image_size: int
    micro_batch: int

    def words(self) -> tuple[str, ...]:
        """For a table."""
        return tuple(str(value) if value else "none" for value in (self.depth, self.image_size, self.micro_batch))


def largest(memory_gb: float) -> Fit:
    """What fits of the published recipe: 16 x 16 trajectories at rank 256, in fp32, with DreamSim, colocated on one GPU."""
    usual = _choice(ModelConfig(), memory_gb)
    return Fit(
        memory_gb,
        _last_that_fits(DEPTHS, lambda depth: ModelConfig(depth=depth), memory_gb),
        _last_that_fits(SIZES, _with_image_size, memory_gb),
        usual.config.learner.micro_batch if usual.shortage is None else 0,
    )


def _last_that_fits(values: Sequence[int], arch_of: Callable[[int], ModelConfig], memory_gb: float) -> int:
    """The last of increasing `values` whose model fits; 0 if not even the first one does."""
    fitting = bisect.bisect_left(values, True, key=lambda value: _choice(arch_of(value), memory_gb).shortage is not None)
    return values[fitting - 1] if fitting else 0


def _with_image_size(pixels: int) -> ModelConfig:
    usual = ModelConfig()
    sides = sides_up_to(pixels * usual.patch_nums[-1] // usual.image_size)
    return ModelConfig(patch_nums=sides, alphas=default_alphas(len(sides)))


def _choice(arch: ModelConfig, memory_gb: float) -> Choice:
    return choose(GrpoConfig(), arch, dict.fromkeys(ROLES, int(memory_gb * 1e9)), on_gpu=True)

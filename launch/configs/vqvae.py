"""The settings of a VQ-VAE's training."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from launch.common.cpus import Threads
from launch.common.defaults import DEMO_DATA
from launch.configs.shape import VaeShape
from learner.supervised.config import TokenizerStepConfig
from stylevar.bounds import check_bounds


def _small() -> VaeShape:
    return VaeShape((1, 2, 4, 6, 8, 10), V=2048, Cvae=32, ch=32, ch_mult=(1, 1, 2, 4))


@dataclass(frozen=True)
class TrainVqvaeConfig:
    shards: tuple[str, ...] = (str(DEMO_DATA / "train-*.tar"),)
    """Training shards: files, patterns or folders."""
    heldout: tuple[str, ...] = (str(DEMO_DATA / "heldout-*.tar"),)
    """Held-out shards to measure the reconstructions on, given in the same way."""
    out: Path = Path("runs/vqvae")
    """Folder for the weights, metrics.json, reconstructions.png, and the state for --resume."""
    init: Path | None = None
    """Start from this VQ-VAE instead of from scratch; tensors of a different shape are newly initialised and listed."""
    resume: bool = False
    """Continue from the last state in --out."""
    shape: VaeShape = field(default_factory=_small)
    step: TokenizerStepConfig = field(default_factory=TokenizerStepConfig)
    steps: Annotated[int, Gt(0)] = 2000
    """Optimizer steps."""
    minutes: Annotated[float, Gt(0), Le(math.inf)] = math.inf
    """Stop after this many minutes of training if `steps` take longer; the learning rate falls in time for that."""
    batch: Annotated[int, Gt(0)] = 32
    """Images per step."""
    warmup: Annotated[int, Ge(0)] = 100
    """Steps over which the learning rate rises to its peak; it then falls to zero along a cosine."""
    revive_every: Annotated[int, Gt(0)] = 25
    """Steps between revivals of unused codes, during the first two thirds of the training."""
    eval_every: Annotated[int, Gt(0)] = 250
    """Steps between measurements; each one also saves the weights and the state."""
    half: bool = False
    """Store the weights' matrices in fp16."""
    seed: int = 0
    """Seed of the initial weights, the batches and the mirroring."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model is trained; auto uses a GPU if there is one."""
    tf32: bool = False
    """Let a GPU round the inputs of fp32 products and convolutions to TF32."""
    threads: Threads = 0
    """CPU threads; 0 for all cores."""

    def __post_init__(self) -> None:
        check_bounds(self)

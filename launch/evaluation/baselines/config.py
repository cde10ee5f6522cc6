"""The flags of AdaIN's training."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from data.config import AugmentConfig
from launch.common.cpus import Threads
from learner.config import Decay
from learner.supervised.schedule import ScheduleConfig
from stylevar.bounds import check_bounds
from stylevar.errors import UserError


@dataclass(frozen=True)
class TrainAdainConfig:
    shards: tuple[str, ...]
    """Training triplets: files, patterns or folders; prepared sets use their split "train". Targets are not used."""
    heldout: tuple[str, ...] = ()
    """Triplets to validate and draw samples on; by default some of the training triplets."""
    out: Path = Path("runs/adain")
    """Folder for decoder.safetensors, config.yaml, samples.png and TensorBoard's curves."""
    encoder: Literal["lite", "vgg"] = "lite"
    """lite: the built-in EfficientNet-Lite0; vgg: VGG-19 as in the paper, from --vgg."""
    vgg: Path | None = None
    """VGG-19's weights: vgg_normalised.pth of the AdaIN authors, or torchvision's vgg19."""
    init: Path | None = None
    """Continue from this decoder of the same encoder, instead of from random weights."""
    steps: Annotated[int, Gt(0)] = 4000
    """Optimizer steps."""
    batch: Annotated[int, Gt(0)] = 8
    """Pairs per step."""
    lr: Annotated[float, Gt(0)] = 1e-3
    """Peak learning rate."""
    style_weight: Annotated[float, Ge(0)] = 10.0
    """Weight of the style loss against the content loss."""
    identity_weight: Annotated[float, Ge(0)] = 0.0
    """Weight of the pixel distance between contents and their reconstructions; not in the paper, but saves many steps."""
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig("cosine"))
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(rotation=0.0, brightness=0.0, flip=True))
    ema: Decay = 0.99
    """Decay of the moving average of the weights. The average is saved; with 0, the weights themselves."""
    seed: int = 0
    """Seed of the initial weights, the pairs and their augmentation."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto uses a GPU if there is one."""
    threads: Threads = 0
    """CPU threads; 0 for all cores."""
    loader_workers: Annotated[int, Ge(0)] | None = None
    """Processes that read and augment pictures; by default one fewer than cores (1 to 8), none if all fit in memory."""
    memory_gb: Annotated[float, Ge(0), Le(math.inf)] = 2.0
    """Memory in GB for decoded triplets. If all triplets fit, they are decoded only once."""
    log_every: Annotated[int, Gt(0)] = 20
    """Steps between entries in TensorBoard."""
    save_every: Annotated[int, Gt(0)] = 500
    """Steps between saves of the decoder and the sample pictures."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if (self.encoder == "vgg") != (self.vgg is not None):
            raise UserError("--encoder vgg and --vgg FILE go together: give both, or neither for the built-in encoder")

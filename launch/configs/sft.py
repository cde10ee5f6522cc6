"""The typed configuration of an SFT run: every field is a flag. Also lists which settings a resumed run may change."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from data.config import AugmentConfig, MixtureConfig
from launch.common.cpus import Threads
from launch.common.defaults import DEMO_VAE
from launch.configs.io import RunKind, absolute_patterns, absolute_source, load_settings
from launch.configs.shape import ModelShape
from learner.supervised.config import SftStepConfig
from learner.supervised.schedule import ScheduleConfig
from stylevar.bounds import check_bounds
from stylevar.config import Alpha
from stylevar.errors import UserError


@dataclass(frozen=True)
class ScratchShape(ModelShape):
    """The model's size, for training from scratch; with --init and --var the checkpoint decides."""

    shared_aln: bool = False
    """Share one adaLN projection between all blocks, with a learned offset per block: a quarter fewer weights."""


PROGRAM = "sft.py"
"""The file in launch/ that has these settings, for commands to print."""


def _small() -> ScratchShape:
    return ScratchShape((1, 2, 4, 7, 10), V=1024, Cvae=16, ch=32, ch_mult=(1, 1, 2, 4), depth=4, style_enc_dim=128)


@dataclass(frozen=True)
class SftConfig:
    """An SFT run. With --resume, the run's settings are the defaults of all flags; flags that differ are saved in it."""

    kind: ClassVar[RunKind] = "sft"
    shards: tuple[str, ...] = ()
    """Training triplets: WebDataset shards, as files, patterns or folders. A prepared set contributes its split "train"."""
    val_shards: tuple[str, ...] = ()
    """Held-out triplets; by default the validation splits of `shards`. Without any, nothing is validated or sampled."""
    name: str = "sft"
    """The run's folder under `runs`."""
    runs: str = "runs"
    """Folder of all runs."""
    resume: str | None = None
    """Continue a run: its folder, one of its checkpoints, or auto for the run `name` if it exists."""
    init: str | None = None
    """Start from this StyleVAR: a weights file, a folder with a model or PEFT adapters, a run, one of its checkpoints or
    merges, or a hub id owner/name[:file]."""
    var: str | None = None
    """Start from this vanilla VAR, e.g. var_d20.pth; needs --image-encoder."""
    image_encoder: str | None = None
    """File with ImageNet weights of torchvision's ResNet-18, from which both encoders start with --var."""
    vae: str = str(DEMO_VAE)
    """The VQ-VAE: a file, a folder, or a hub id owner/name[:file]."""
    alphas: tuple[Alpha, ...] | None = None
    """Style weight of each scale; replaces those of the checkpoint, or the published ones."""
    shape: ScratchShape = field(default_factory=_small)
    step: SftStepConfig = field(default_factory=SftStepConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    steps: Annotated[int, Gt(0)] | None = None
    """Optimizer steps; by default the number that `epochs` takes."""
    epochs: Annotated[float, Gt(0)] = 10.0
    """Passes over the training triplets, if `steps` is not given."""
    minutes: Annotated[float, Gt(0), Le(math.inf)] = math.inf
    """Stop after this many minutes of training steps if `steps` take longer; the learning rate falls in time for that."""
    batch: Annotated[int, Gt(0)] = 128
    """Triplets per step, summed over all processes."""
    micro_batch: Annotated[int, Gt(0)] = 16
    """Triplets per forward pass; a step accumulates the gradients of its passes."""
    loader_workers: Annotated[int, Ge(0)] | None = None
    """Processes that read and augment triplets; by default one fewer than cores (1 to 8), none if all fit in memory."""
    seed: int = 0
    """Seed of initial weights, data order, augmentation, jitter and drop path."""
    workers: Annotated[int, Gt(0)] = 1
    """Data-parallel processes, on one machine or a Ray cluster; one needs no Ray. Each uses a GPU if there are enough."""
    max_restarts: Annotated[int, Ge(0)] = 3
    """With several processes: how often the run restarts from its last checkpoint after losing a process."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto uses a GPU if there is one."""
    threads: Threads = 0
    """CPU threads; 0 for all cores."""
    memory_gb: Annotated[float, Ge(0), Le(math.inf)] = 2.0
    """Memory in GB for decoded triplets. If all triplets fit, they are decoded and tokenised once before the first step and
    stay on the model's device."""
    log_every: Annotated[int, Gt(0)] = 10
    """Steps between entries in TensorBoard."""
    eval_every: Annotated[int, Gt(0)] = 250
    """Steps between validations."""
    val_samples: Annotated[int, Gt(0)] = 1024
    """Held-out triplets to score of each validation split, spread evenly over it."""
    image_conditions: Annotated[int, Gt(0)] = 6
    """Held-out triplets of each split to sample at every validation."""
    checkpoint_every: Annotated[int, Gt(0)] = 500
    """Steps between checkpoints; each checkpoint is also validated."""
    keep_checkpoints: Annotated[int, Gt(0)] = 2
    """Checkpoints kept, besides the best."""
    export: Literal["best", "last"] = "best"
    """Which checkpoint becomes the run's model: the one with the lowest held-out loss, or the last."""
    half: bool = False
    """Store the matrices of the run's model in fp16."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.batch % self.workers:
            raise UserError(f"--workers {self.workers}: must divide --batch {self.batch}")
        if Path(self.name).name != self.name or self.name in ("", ".", ".."):
            raise UserError(f"--name {self.name!r}: a single folder name is needed; put the path into --runs")
        if self.init is not None and self.var is not None:
            raise UserError("--init and --var are two different starts: give one of them")

    def total_steps(self, triplets: int) -> int:
        """Optimizer steps of a run on this many training triplets."""
        return self.steps or math.ceil(self.epochs * triplets / self.batch)

    def absolute(self) -> SftConfig:
        """The same settings with absolute paths, so that a run can be resumed from any folder."""
        return replace(
            self,
            shards=absolute_patterns(self.shards),
            val_shards=absolute_patterns(self.val_shards),
            runs=os.path.abspath(self.runs),
            init=absolute_source(self.init),
            var=absolute_source(self.var),
            image_encoder=absolute_source(self.image_encoder),
            vae=absolute_source(self.vae),
        )


MAY_CHANGE = (
    "steps",
    "epochs",
    "minutes",
    "micro_batch",
    "loader_workers",
    "workers",
    "max_restarts",
    "device",
    "threads",
    "memory_gb",
    "log_every",
    "eval_every",
    "image_conditions",
    "checkpoint_every",
    "keep_checkpoints",
    "export",
    "half",
    "step.lr",
    "step.betas",
    "step.weight_decay",
    "step.grad_clip",
    "step.alpha_jitter",
    "step.label_smoothing",
    "step.train_bn",
    "step.precision",
    "step.ema",  # but not to or from none
    "step.self_forced",
    "step.self_forced_rate",
    "step.self_forced_temperature",
    "step.compile",
    "step.recompute",
    "step.topk",
    "schedule",
    "augment",
)
"""Settings that a resumed run may change. The others define the checkpoint (model, order of the data) or the
held-out triplets that the best checkpoint was chosen by."""


def load_config(path: Path) -> SftConfig:
    """Read an SFT run's config.yaml. UserError if it is missing or something else."""
    return load_settings(SftConfig, path, "an SFT run")

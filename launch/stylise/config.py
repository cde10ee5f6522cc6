"""The flags of programs that stylise pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from annotated_types import Ge, Le

from launch.common.defaults import DEMO_TUNED
from reward.config import RewardConfig
from stylevar.bounds import check_bounds
from stylevar.config import Precision
from stylevar.errors import UserError
from stylevar.fit import Fit, Restore
from stylevar.sampling_config import Sampling

USUAL_REWARD = "lite_grey@content=1,lite@style=0.25,color@style=0.02"
"""Results are compared with the content in grey, so that new colours cost nothing, and with the style and its palette.

No term is enough alone: a copy of the content satisfies the first, a copy of the style picture the others. The weights were
chosen with an early model of the demo, on 80 held-out conditions with known targets. There, the targets themselves score
better than all samples, better than the content in 93 % of the conditions, and better than the style picture in 74 %.
"""


def usual_reward() -> RewardConfig:
    """The reward of results, for which there is no target."""
    return RewardConfig(reward=USUAL_REWARD)


def check_reward(config: RewardConfig) -> None:
    """Raise UserError if the reward compares with a target."""
    if (name := config.target_term) is not None:
        raise UserError(
            f"--reward {config.reward}: {name} compares with a target, which new pictures do not have; write "
            f"{name}@content or {name}@style"
        )


@dataclass(frozen=True)
class ModelSource:
    """A trained model."""

    init: str = str(DEMO_TUNED)
    """StyleVAR: a weights file, a folder with a model or PEFT adapters, a run, one of its checkpoints or merges, or a hub
    id owner/name[:file]; by default the small demo model after GRPO."""
    vae: str | None = None
    """Its VQ-VAE: a file, a folder, or a hub id owner/name[:file]; by default vqvae.safetensors beside the model, or the
    VQ-VAE of its run."""
    revision: str | None = None
    """Branch, tag or commit of the model and the VQ-VAE on the hub."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto uses a GPU if there is one."""
    precision: Precision = "fp32"
    """bf16: matrix products and attention run in bfloat16, on a GPU decoding too."""
    tf32: bool = False
    """Let a GPU round the inputs of fp32 products and convolutions to TF32: two to three times the speed."""
    compile: bool = False
    """Compile the model first. This takes minutes and pays off for many pictures."""


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class InferConfig:
    out: Path | None = None
    """Folder for CONTENT__STYLE.png and grid.png; or, for a single result, a .png file (its grid is beside it). By default
    runs/infer, or runs/infer-2 and so on if that is taken."""
    content: tuple[Path, ...] = ()
    """Pictures to stylise: files, folders, patterns (quoted or not) and .txt lists of files. Only the first frame of an
    animation is used. Without --content, --style and --pairs, a few of the demo's pictures are used."""
    style: tuple[Path, ...] = ()
    """Style pictures, given in the same way; every content is combined with every style."""
    pairs: Path | None = None
    """Instead of both: a CSV file with the columns content, style and, optionally, name. Paths are relative to the file."""
    fit: Fit = "crop"
    """How pictures are made square. crop: keep the centre; stretch: distort the whole picture; pad: keep the whole content
    and mirror its edges, with the margins cut off the result (styles are cropped)."""
    restore: Restore = "aspect"
    """Shape of results. aspect: the content's aspect ratio at the model's resolution (a square with --fit crop); size: the
    content's own width and height (its centre square with --fit crop), enlarged to at most 64 megapixels; square: as
    the model generates them."""
    best_of: Annotated[int, Ge(0)] = 0
    """Draw this many samples per pair and keep the --num-samples best by --reward; 0 keeps every sample."""
    batch: Annotated[int, Ge(1)] = 8
    """Results to compute at once."""
    overwrite: bool = False
    """Replace results that exist."""
    skip_existing: bool = False
    """Skip pairs whose results exist."""
    sampling: Sampling = field(default_factory=Sampling)
    reward: RewardConfig = field(default_factory=usual_reward)
    model: ModelSource = field(default_factory=ModelSource)

    def __post_init__(self) -> None:
        check_bounds(self)
        check_reward(self.reward)
        if self.best_of and self.best_of < self.sampling.num_samples:
            raise UserError(f"--best-of {self.best_of}: must be 0 or at least --num-samples {self.sampling.num_samples}")
        if self.pairs is None and bool(self.content) != bool(self.style):
            given, other = ("content", "style") if self.content else ("style", "content")
            raise UserError(f"--{given} without --{other}: give both, or --pairs with a CSV file")
        if self.pairs is not None and (self.content or self.style):
            raise UserError("--pairs names contents and styles itself: leave out --content and --style")
        if self.overwrite and self.skip_existing:
            raise UserError("--overwrite and --skip-existing exclude each other: give one")


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class AppConfig:
    host: str = "127.0.0.1"
    """Address to serve the page on; 0.0.0.0 serves other machines too."""
    port: Annotated[int, Ge(1), Le(65535)] = 7860
    """Port to serve the page on."""
    model: ModelSource = field(default_factory=ModelSource)
    reward: RewardConfig = field(default_factory=usual_reward)

    def __post_init__(self) -> None:
        check_bounds(self)
        check_reward(self.reward)

"""The settings of a reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from reward.terms import Term, parse_terms
from stylevar.bounds import check_bounds

DreamSimType = Literal["dino_vitb16", "clip_vitb32", "open_clip_vitb32", "ensemble", "synclr_vitb16", "dino_vitb16_patch"]
"""The package's models that load from files alone; its DINOv2 models exist only as code behind torch.hub."""


@dataclass(frozen=True)
class RewardConfig:
    """What generated images are compared with, and how."""

    reward: str = "lite"
    """The distance: dreamsim (the published reward), lite or lite_grey (both built in, without weights), lpips, lpips_alex,
    style, content, cfsd, clip, dino, ssim, psnr, edges or color; a weighted sum as dreamsim=5.0,lpips=1.0; or your own
    package.module:Class. Each compares with the target; NAME@content or NAME@style compares with an input:
    dreamsim@content=2,color@style=0.05."""
    dreamsim_type: DreamSimType = "dino_vitb16"
    """Which DreamSim model scores the images. Used only with --reward dreamsim."""
    dreamsim_cache: str | None = None
    """Folder with DreamSim's weight files, instead of `dreamsim` in --metric-weights; nothing is downloaded."""
    reward_scale: Annotated[float, Gt(0)] = 5.0
    """Lambda: the reward is -scale * distance. In a sum it is the weight of terms without one."""
    reward_batch: Annotated[int, Ge(1)] = 64
    """Generated images scored at once, at most; fewer need less memory."""
    metric_weights: str | None = None
    """Folder with the weight files of the other distances (docs/rewards.md lists them); nothing is downloaded."""

    def __post_init__(self) -> None:
        check_bounds(self)
        self.terms()

    def terms(self) -> tuple[Term, ...]:
        """The terms of the reward. Raises UserError if --reward is malformed or names an unknown distance."""
        return parse_terms(self.reward, self.reward_scale)

    @property
    def target_term(self) -> str | None:
        """The first distance that compares with the target; None if all compare with the inputs."""
        return next((term.name for term in self.terms() if term.reference == "target"), None)

    @property
    def scale(self) -> float:
        """The factor of the whole distance: the weight of a single term, or 1 for a sum, which contains its weights."""
        terms = self.terms()
        return terms[0].weight if len(terms) == 1 else 1.0

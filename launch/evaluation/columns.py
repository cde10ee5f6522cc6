"""The columns of the table: which distance, to which reference, and how it is shown."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from launch.evaluation.config import EvalConfig
from reward.base import MissingWeights
from reward.build import check_weights
from reward.metrics import PSNR_CAP
from stylevar.errors import UserError
from stylevar.references import Reference

logger = logging.getLogger(__name__)

Better = Literal["lower", "higher"]
_SIMILARITIES = ("ssim", "edges", "clip", "dino")


@dataclass(frozen=True)
class Column:
    """A distance of `reward.terms.NAMES` between each sample and the reference of its condition."""

    distance: str
    reference: Reference
    title: str

    @property
    def key(self) -> str:
        """The column's name in files, such as `lpips/target`."""
        return f"{self.distance}/{self.reference}"

    @property
    def better(self) -> Better:
        """Whether lower or higher values are better."""
        return "higher" if self.distance in (*_SIMILARITIES, "psnr") else "lower"

    def shown(self, distance: Tensor) -> Tensor:
        """A distance as reported: a similarity for ssim, edges, clip and dino, decibels for psnr."""
        if self.distance == "psnr":
            return PSNR_CAP * (1 - distance)
        return 1 - distance if self.distance in _SIMILARITIES else distance


TITLES = {
    "style": "Style Loss",
    "content": "Content Loss",
    "lpips": "LPIPS",
    "ssim": "SSIM",
    "edges": "edges",
    "dreamsim": "DreamSim",
    "clip": "CLIP-Sim",
    "dino": "DINO",
    "lite": "lite",
    "color": "color",
    "psnr": "PSNR",
}
TARGET = tuple(Column(distance, "target", title) for distance, title in TITLES.items())
"""Columns of paired sets: distances to the target."""
INPUTS = (
    Column("style", "style", "Style Loss"),
    Column("content", "content", "Content Loss"),
    Column("lpips", "content", "LPIPS"),
    Column("ssim", "content", "SSIM"),
    Column("edges", "content", "edges"),
    Column("dreamsim", "content", "DreamSim"),
    Column("dreamsim", "style", "DreamSim"),
    Column("clip", "content", "CLIP-Sim"),
    Column("dino", "style", "DINO"),
    Column("lite", "content", "lite"),
    Column("color", "style", "color"),
)
"""Columns that compare with the inputs: style metrics with the style image, content metrics with the content."""
ALWAYS = (
    Column("cfsd", "content", "CFSD"),
    Column("dino", "content", "DINO"),
    Column("clip", "style", "CLIP-I"),
    Column("lpips_alex", "content", "LPIPS (ArtFID)"),
)
"""Columns that are defined on the inputs."""


def choose_columns(config: EvalConfig, targets: bool) -> tuple[tuple[Column, ...], dict[str, str]]:
    """The columns whose weights are available, and {distance: reason} of the others, which are also logged.

    `targets`: whether the conditions have any. With `config.strict`, raises MissingWeights instead. Raises UserError if
    targets or the weights of the reward itself are missing.
    """
    wanted: list[Column] = []
    references = config.references(targets)
    if "target" in references:
        wanted += TARGET
    if "inputs" in references:
        wanted += INPUTS
    wanted += ALWAYS
    missing: dict[str, str] = {}
    for distance in dict.fromkeys(column.distance for column in wanted):
        try:
            check_weights(distance, config.reward)
        except MissingWeights as error:
            if config.strict:
                raise MissingWeights(f"--strict: {error}") from error
            missing[distance] = str(error)
            logger.warning("left out: %s", error)
    for term in config.reward.terms():
        if term.name in missing:
            raise UserError(f"--reward {config.reward.reward}: {missing[term.name]}")
    return tuple(column for column in wanted if column.distance not in missing), missing

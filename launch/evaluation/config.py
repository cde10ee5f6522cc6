"""The settings of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge

from launch.common.defaults import DEMO_DATA
from reward.config import RewardConfig
from stylevar.bounds import check_bounds
from stylevar.errors import UserError
from stylevar.sampling_config import SamplingChoice, Temperature

Against = Literal["auto", "target", "inputs", "both"]


@dataclass(frozen=True)
class EvalConfig:
    """What to measure. Without any flags: the demo's model and the newest run's, on the demo's held-out conditions."""

    methods: tuple[str, ...] | None = None
    """What to evaluate; by default the demo's model, and the newest model in `runs` whose pictures have the same size. Give
    NAME=CHECKPOINT or NAME=METHOD, or CHECKPOINT or METHOD alone. A checkpoint is a weights file, a folder with a model or
    PEFT adapters, a run, one of its checkpoints or merges, or a hub id. Methods are copy, color-transfer and adain;
    adain=FILE sets its decoder."""
    checkpoint: str | None = None
    """Evaluate only this checkpoint, instead of --methods."""
    out: Path | None = None
    """Folder for the results; by default runs/eval, or runs/eval-2 and so on if that holds other results."""
    shards: tuple[str, ...] = (str(DEMO_DATA / "heldout-*.tar"),)
    """Triplets, or pairs without targets: shards, patterns, or folders of shards, quoted or not."""
    content: Path | None = None
    """Evaluate without targets instead: content pictures, as a picture, a folder, a pattern, or a .txt list of files."""
    style: Path | None = None
    """Style pictures, given in the same way."""
    pairing: Literal["all", "zip"] = "all"
    """Without targets: every content with every style, or the first with the first, and so on."""
    size: Annotated[int, Ge(0)] = 0
    """Without targets: side of the square cut from each picture; 0 for the first checkpoint's size, or 256 without one."""
    limit: Annotated[int, Ge(0)] = 0
    """Conditions to evaluate, spread evenly over all; 0 for all."""
    against: Against = "auto"
    """Compare with the target, with content and style, or with both; auto uses the target if there is one."""
    seeds: Annotated[int, Ge(1)] = 1
    """Samples per condition; deterministic methods draw one."""
    seed: int = 0
    """Seed of the samples. A sample depends only on the seed, its condition's key, and its number."""
    vae: str | None = None
    """VQ-VAE of all checkpoints; by default the one beside each checkpoint, or the one that its run used."""
    sampling: SamplingChoice = field(default_factory=SamplingChoice)
    sweep_temperature: tuple[Temperature, ...] = ()
    """Try these temperatures on `sweep_shards` first, and sample each checkpoint at the temperature with its best mean
    reward. A lower temperature alone raises the reward, so only methods at their own best compare fairly."""
    sweep_shards: tuple[str, ...] = (str(DEMO_DATA / "train-*.tar"),)
    """Triplets for --sweep-temperature: shards, patterns or folders. They must differ from the evaluated ones."""
    sweep_conditions: Annotated[int, Ge(1)] = 48
    """Conditions for --sweep-temperature, spread evenly over all."""
    coupled: bool = True
    """Use the same random numbers for all checkpoints, to reduce noise in comparisons; costs a few per cent of the time."""
    adain_vgg: Path | None = None
    """Encoder weights of the adain method."""
    adain_decoder: Path | None = None
    """Decoder weights of the adain method."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    compare: tuple[str, str] | None = None
    """Test two of the methods against each other, over the same conditions."""
    strict: bool = False
    """Fail if the weights of a metric are missing, instead of leaving the metric out."""
    images: bool = True
    """Save the first sample of every condition as a PNG, and draw the best, median and worst ones."""
    batch: Annotated[int, Ge(1)] = 8
    """Conditions to stylise and measure at once."""
    workers: Annotated[int, Ge(0)] = 0
    """Ray actors that share the work; 0 works in this process."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models run; auto uses a GPU if there is one."""
    overwrite: bool = False
    """Start over in a folder that holds results."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if (self.content is None) != (self.style is None):
            raise UserError("--content and --style belong together: give both, or --shards alone")
        if self.sweep_temperature and self.sampling.temperature is not None:
            raise UserError("--temperature and --sweep-temperature exclude each other: give one of them")
        if self.content is not None and self.against in ("target", "both"):
            raise UserError(f"--against {self.against}: pictures without targets can be compared with the inputs only")
        if self.content is not None:
            self.reward_key(targets=False)

    def reward_key(self, targets: bool) -> str | None:
        """The column of the reward; None for one that compares with targets alone, where there are none.

        Raises UserError if only a part of the reward compares with missing targets.
        """
        against = {term.reference for term in self.reward.terms()}
        if against == {"target"}:
            return "reward/target" if targets else None
        if "target" in against and not targets:
            name = self.reward.target_term
            raise UserError(
                f"--reward {self.reward.reward}: {name} compares with the target, which these conditions lack; "
                f"write {name}@content or {name}@style"
            )
        return "reward"

    def references(self, targets: bool) -> tuple[str, ...]:
        """The references to compare with: "target", "inputs", or both. Raises UserError for missing targets."""
        if self.against == "auto":
            return ("target",) if targets else ("inputs",)
        if self.against != "inputs" and not targets:
            raise UserError(f"--against {self.against}: pairs without targets can be compared with the inputs only")
        return ("target", "inputs") if self.against == "both" else (self.against,)

"""The typed configuration of a GRPO run: one tree, two presets, every field a flag."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge

from launch.common.cpus import Threads
from launch.common.defaults import DEMO_DATA, DEMO_MODEL, DEMO_VAE
from launch.common.text import parse_size
from launch.configs.cluster import ClusterConfig
from launch.configs.dry_run import PlanConfig
from launch.configs.io import RunKind, absolute_patterns, absolute_source, load_settings
from learner.grpo.config import LearnerConfig
from learner.grpo.merging import MergeConfig
from reward.config import RewardConfig
from rollout.config import RolloutConfig
from stylevar.bounds import check_bounds
from stylevar.config import Alpha, Precision
from stylevar.errors import UserError
from stylevar.sampling_config import SamplingConfig, Temperature, TopK, TopP

if TYPE_CHECKING:
    from stylevar.policy import PolicySource

PROGRAM = "grpo.py"
"""The file in launch/ that has these settings, for commands to print."""
SAMPLED_BY = ("temperature", "top_k", "top_p")
"""Sampling settings that held-out scoring sets separately."""


@dataclass(frozen=True)
class MonitorConfig:
    """What a run measures, shows and keeps."""

    eval_every: Annotated[int, Ge(1)] = 50
    """Steps between scorings of the held-out conditions with fixed seeds (`reward/heldout`)."""
    eval_conditions: Annotated[int, Ge(1)] = 32
    """Held-out conditions scored every `eval_every` steps; all of them at the start and at the end."""
    eval_group: Annotated[int, Ge(1)] = 4
    """Samples per held-out condition."""
    eval_temperature: Temperature | None = None
    """Temperature of held-out samples; by default the best one according to the model's config.json, otherwise 1."""
    eval_top_k: TopK | None = None
    """--top-k of held-out samples; by default that of the model's config.json."""
    eval_top_p: TopP | None = None
    """--top-p of held-out samples; by default that of the model's config.json."""
    stop_when_flat: Annotated[int, Ge(0)] = 0
    """End the run after this many scorings in a row (every `eval_every` steps) without a new best score; 0 for never."""
    eval_unit: Annotated[int, Ge(1)] = 8
    """Held-out conditions to sample at once."""
    image_conditions: Annotated[int, Ge(1)] = 8
    """Held-out conditions whose samples are shown in TensorBoard at every scoring."""
    checkpoint_every: Annotated[int, Ge(1)] = 50
    """Steps between checkpoints."""
    keep_checkpoints: Annotated[int, Ge(1)] = 3
    """Checkpoints kept, besides the best."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class GrpoConfig:
    """A GRPO run. `--preset demo` (the default) is the embedded demo, `--preset paper` is for real data; `--config FILE`
    takes the defaults from a run's file."""

    kind: ClassVar[RunKind] = "grpo"
    preset: Literal["paper", "demo"] = "paper"
    """Sets the defaults of all other flags: the embedded demo, or the paper's settings for real data. Default: demo."""
    config: Path | None = None
    """Take the defaults from this config.yaml of an earlier run instead."""
    name: str = "grpo"
    """The run's folder under `runs`; if the default name is taken, the run gets a number: demo-2."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    resume: str | None = None
    """Continue a run: its folder, one of its checkpoints, or auto for the run `name` if it exists. The run's settings are
    the defaults of all flags; flags that differ are saved in the run."""
    init: str = "model.safetensors"
    """The model to start from: a weights file, a folder with a model or PEFT adapters, a run, one of its checkpoints or
    merges, or a hub id owner/name[:file]."""
    vae: str = "vqvae.safetensors"
    """The VQ-VAE: a file, a folder, or a hub id owner/name[:file]."""
    revision: str | None = None
    """Hub revision of the model and the VQ-VAE."""
    alphas: tuple[Alpha, ...] | None = None
    """Style weight of each scale; replaces the weights saved with the model."""
    shards: tuple[str, ...] = ("data/train-*.tar",)
    """Training conditions: WebDataset shards of triplets, or of pairs if --reward compares with the inputs alone; as files,
    patterns or folders, quoted or not."""
    heldout: tuple[str, ...] = ("data/heldout-*.tar",)
    """Held-out conditions, scored during the run; given in the same way."""
    novel: tuple[str, ...] = ()
    """A second held-out set, scored only at the start and the end; given in the same way."""
    steps: Annotated[int, Ge(1)] = 1000
    """GRPO steps."""
    conditions: Annotated[int, Ge(1)] = 16
    """Conditions per step (B); each is sampled `group` times."""
    seed: int = 0
    """Seed of data order, trajectories and adapters."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto uses a GPU if there is one."""
    threads: Threads = 0
    """CPU threads of the worker; 0 for all that it may use."""
    memory_budget: str | None = None
    """Device memory that each process may use, such as 22GiB; by default all free memory of a GPU, and no limit on a CPU. It
    determines how much is computed at once where --micro-batch, --rollout-batch and --decode-batch are 0. On a CPU, freed
    memory is also returned to the system at once, which costs some time."""
    precision: Precision = "fp32"
    """bf16: matrix products and attention run in bfloat16, on a GPU decoding too; residuals, logits, adapters stay fp32."""
    tf32: bool = False
    """Let a GPU round the inputs of fp32 products and convolutions to TF32."""
    compile: bool = False
    """Fuse chains of elementwise operations with torch.compile, for speed on a GPU. It takes half a minute at the start, and
    needs Triton on a GPU or a C++ compiler on a CPU; without it, the run goes on uncompiled. Results differ by rounding."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    reward: RewardConfig = field(default_factory=lambda: RewardConfig(reward="dreamsim"))
    merge: MergeConfig = field(default_factory=MergeConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)

    def __post_init__(self) -> None:
        check_bounds(self)
        for name in ("shards", "heldout"):
            if not getattr(self, name):
                raise UserError(f"--{name} is empty: give shards, patterns or folders of shards")
        if self.memory_budget is not None:
            parse_size(self.memory_budget)
        if self.conditions % self.learner.minibatches:
            raise UserError(f"--minibatches {self.learner.minibatches} does not divide --conditions {self.conditions}")
        group = self.rollout.group
        if self.learner.branch_after is not None and (group % 2 or group < 4):
            raise UserError(
                f"--group {group}: must be even and at least 4 with --credit vmr, which compares pairs of trajectories; "
                f"give --group {max(4, group + group % 2)}"
            )
        if Path(self.name).name != self.name or self.name in ("", ".", ".."):
            raise UserError(f"--name {self.name!r}: a single folder name is needed; put the path into --runs")

    def with_heldout_sampling(self, own: SamplingConfig) -> GrpoConfig:
        """The same settings, with the model's `own` sampling where the --eval-... sampling flags are not given."""
        monitor = self.monitor
        open_ones = [name for name in SAMPLED_BY if getattr(monitor, f"eval_{name}") is None]
        filled = dataclasses.replace(monitor, **{f"eval_{name}": getattr(own, name) for name in open_ones})
        return dataclasses.replace(self, monitor=filled)

    def heldout_sampling(self) -> RolloutConfig:
        """How held-out conditions are sampled. Configs of older runs lack this: they sampled as in training."""
        said = {name: getattr(self.monitor, f"eval_{name}") for name in SAMPLED_BY}
        return dataclasses.replace(self.rollout, **{name: value for name, value in said.items() if value is not None})

    def scarce_memory(self, device: str) -> bool:
        """Whether processes should return freed memory to the system: on a CPU with a budget."""
        return self.memory_budget is not None and device == "cpu"

    def policy_source(self) -> PolicySource:
        """The source of the weights at the run's start."""
        from stylevar.policy import PolicySource  # late: it loads the model's code

        return PolicySource(
            self.init,
            self.vae,
            self.learner.lora_rank,
            self.seed,
            self.revision,
            self.alphas,
            precision=self.precision,
            tf32=self.tf32,
            compile=self.compile,
        )

    @property
    def heldout_sets(self) -> tuple[str, ...]:
        """The names of the held-out sets."""
        return ("heldout", "novel") if self.novel else ("heldout",)

    def condition_patterns(self) -> dict[str, tuple[str, ...]]:
        """{name: shards} of every set of conditions."""
        return {"train": self.shards, **{name: getattr(self, name) for name in self.heldout_sets}}

    def absolute(self) -> GrpoConfig:
        """The same settings with absolute paths, so that a run can be resumed from any folder."""
        reward = dataclasses.replace(
            self.reward,
            dreamsim_cache=absolute_source(self.reward.dreamsim_cache),
            metric_weights=absolute_source(self.reward.metric_weights),
        )
        return dataclasses.replace(
            self,
            runs=Path(os.path.abspath(self.runs)),
            init=absolute_source(self.init),
            vae=absolute_source(self.vae),
            shards=absolute_patterns(self.shards),
            heldout=absolute_patterns(self.heldout),
            novel=absolute_patterns(self.novel),
            reward=reward,
        )


MAY_CHANGE = (
    "steps",
    "device",
    "threads",
    "memory_budget",
    "compile",
    "rollout.rollout_batch",
    "rollout.decode_batch",
    "rollout.cuda_graphs",
    "learner.lr",
    "learner.adam_betas",
    "learner.weight_decay",
    "learner.grad_clip",
    "learner.clip_eps",
    "learner.kl_beta",
    "learner.kl_limit",
    "learner.updates_per_rollout",
    "learner.minibatches",
    "learner.micro_batch",
    "learner.recompute",
    "learner.optimizer_device",
    "learner.mismatch_limit",
    "learner.importance_cap",
    "reward.dreamsim_cache",
    "reward.reward_batch",
    "reward.metric_weights",
    "merge.peak_min_steps",
    "merge.min_gain",
    "merge.patience",
    "merge.emergency_kl",
    "merge.emergency_min_steps",
    "merge.rollback_drop",
    "monitor.eval_every",
    "monitor.eval_unit",
    "monitor.stop_when_flat",
    "monitor.image_conditions",
    "monitor.checkpoint_every",
    "monitor.keep_checkpoints",
    "cluster",
    "plan",
)
"""Settings that a resumed run may change. The others define the checkpoint (model, adapters, order of the data) or the
scores at the start (held-out pictures, rewards, sampling), without which a gain would have no meaning."""


def demo() -> GrpoConfig:
    """The embedded demo: a small model on 80 px images, minutes on two CPU cores."""
    return GrpoConfig(
        preset="demo",
        name="demo",
        init=str(DEMO_MODEL),
        vae=str(DEMO_VAE),
        shards=(str(DEMO_DATA / "train-*.tar"),),
        heldout=(str(DEMO_DATA / "heldout-*.tar"),),
        novel=(str(DEMO_DATA / "novel-*.tar"),),
        steps=44,
        conditions=12,  # with the reward's gradient, most of the noise comes from differences between conditions
        rollout=RolloutConfig(group=2, temperature=0.5),
        learner=LearnerConfig(
            lora_rank=16, lr=5e-3, lr_schedule="linear", lr_end=0.02, credit="gradient", panw_gamma=0.0, kl_beta=0.0
        ),
        reward=RewardConfig(reward="lite=5,color=0.05"),  # lite alone makes colours worse
        # The held-out score of 12 conditions has a standard error of 0.1, so only a large drop is a fall.
        merge=MergeConfig(
            ema_beta=0.9, peak_min_steps=30, min_gain=0.02, patience=5, emergency_min_steps=15, rollback_drop=0.5
        ),
        monitor=MonitorConfig(eval_every=12, eval_conditions=12, eval_group=2, checkpoint_every=12, image_conditions=6),
    )


PRESETS = {"paper": GrpoConfig, "demo": demo}
DEFAULT_PRESET = "demo"


def default_for(argv: Sequence[str]) -> GrpoConfig:
    """The defaults that a command line selects with --preset or --config, before its other flags are parsed."""
    preset, config = flag(argv, "--preset") or DEFAULT_PRESET, flag(argv, "--config")
    if config is not None:
        return load_config(Path(config))
    if preset not in PRESETS:
        raise UserError(f"unknown --preset {preset!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[preset]()


def flag(argv: Sequence[str], name: str) -> str | None:
    """The value that a command line gives for the flag `name`, or None."""
    for i, word in enumerate(argv):
        if word == name and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def load_config(path: Path) -> GrpoConfig:
    """Read a GRPO run's config.yaml. UserError if it is missing or something else."""
    return load_settings(GrpoConfig, path, "a GRPO run")

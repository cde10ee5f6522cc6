"""The flags of the benchmarks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, get_args

from annotated_types import Ge, Gt

from launch.benchmarks.plot import refuse_unknown
from launch.common.cpus import Threads, available_cpus
from launch.configs.grpo import demo
from launch.configs.shape import ModelShape
from learner.grpo.config import LearnerConfig
from learner.supervised.config import SftStepConfig
from reward.config import DreamSimType, RewardConfig
from rollout.config import RolloutConfig
from stylevar.bounds import check_bounds
from stylevar.config import Precision
from stylevar.errors import UserError
from stylevar.sampling_config import TopK, TopP

SMALL = ModelShape(depth=4, patch_nums=(1, 2, 3, 4), ch=32)
"""A model that a laptop trains, on 64 px images."""
RewardName = Literal["none", "lite", "dreamsim"]


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    repeat: Annotated[int, Ge(1)] = 3
    """Measured repetitions; medians are shown."""
    warmup: Annotated[int, Ge(0)] = 1
    """Repetitions before that, which are not measured."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class Data:
    """Preparing, reading, resuming and one SFT step, on a generated corpus in OmniStyle's format."""

    triplets: Annotated[int, Ge(1)] = 400
    """Targets of the generated corpus."""
    source_px: Annotated[int, Ge(1)] = 1024
    """Side of its pictures."""
    size: Annotated[int, Ge(1)] = 256
    """Side of the prepared pictures."""
    epoch: Annotated[int, Ge(1)] = 100_000
    """Triplets of the epoch during which memory is measured."""
    rows: Annotated[int, Ge(1)] = 1_000_000
    """Rows of the manifest with which a run is resumed."""
    workers: Annotated[int, Ge(1)] = field(default_factory=available_cpus)
    """Processes that prepare and read."""
    scratch: Path | None = None
    """Where the corpus is generated; a temporary folder by default, removed at the end."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class Scale:
    """One worker per role against the colocated run, and predicted against measured step times."""

    steps: Annotated[int, Ge(1)] = 4
    """Steps that are timed in each round, after two that are not."""
    rounds: Annotated[int, Ge(1)] = 3
    """How often all cases are measured. The machine's speed drifts by more than the cases differ, so medians count."""
    threads: Annotated[int, Ge(1)] = field(default_factory=available_cpus)
    """Threads of the colocated worker, and of each distributed one if they take turns."""
    conditions: Annotated[int, Ge(1)] = 4
    """Conditions per step."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class Step:
    """One GRPO step on random weights and images: time, FLOPs and share of the peak of each phase, and memory."""

    model: ModelShape = field(default_factory=ModelShape)
    rollout: RolloutConfig = field(default_factory=lambda: RolloutConfig(group=2))
    learner: LearnerConfig = field(default_factory=lambda: LearnerConfig(micro_batch=1))
    effort: Effort = field(default_factory=Effort)
    conditions: Annotated[int, Ge(1)] = 1
    """Conditions per step."""
    reward: RewardName = "none"
    """The reward; none gives random rewards that cost no time."""
    scarce_memory: bool = False
    """On a CPU, return freed memory to the system, as launch/grpo.py --memory-budget does."""
    dreamsim_type: DreamSimType = "dino_vitb16"
    """Which DreamSim model scores the images. Used only with --reward dreamsim."""
    dreamsim_cache: str | None = None
    """Folder that holds DreamSim's weight files. Required with --reward dreamsim."""
    precision: Precision = "fp32"
    """What the blocks multiply in."""
    tf32: bool = False
    """Let a GPU round the inputs of fp32 products and convolutions to TF32."""
    compile: bool = False
    """Fuse chains of elementwise operations, as `launch/grpo.py --compile` does."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it runs; auto uses a GPU if there is one."""
    threads: Threads = 0
    """CPU threads; 0 for all cores."""
    json: bool = False
    """Print one JSON object instead of tables."""
    plot: Path | None = None
    """Also draw where the time goes, into this .png or .svg file."""
    profile: Path | None = None
    """Also profile one more step, and write its slowest operations into this text file."""
    compare_naive: bool = False
    """Also run the step with a plain implementation, check that both agree, and show what is saved. Takes much longer."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.reward not in get_args(RewardName):
            raise UserError(f"--reward {self.reward}: unknown; choose one of {', '.join(get_args(RewardName))}")

        if self.plot is not None:
            refuse_unknown(self.plot)


@dataclass(frozen=True)
class Infer:
    """Stylising pairs, from images to images: time, FLOPs, share of the peak of matrix products, and memory."""

    model: ModelShape = field(default_factory=ModelShape)
    effort: Effort = field(default_factory=Effort)
    batch_sizes: tuple[Annotated[int, Ge(1)], ...] = (1, 4, 8)
    """Pairs at once."""
    top_k: TopK = 900
    """Only the best K tokens may be drawn; 0 for all."""
    top_p: TopP = 0.96
    """Only the smallest set of tokens that holds this share may be drawn; 0 for all."""
    precision: Precision = "fp32"
    """bf16: blocks multiply and attend in bfloat16, and a GPU decodes in it."""
    tf32: bool = False
    """Let a GPU round the inputs of fp32 products and convolutions to TF32."""
    compile: bool = False
    """Compile the model first, as `infer.py --compile` does."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it runs; auto uses a GPU if there is one."""
    threads: Threads = 0
    """CPU threads; 0 for all cores."""
    json: bool = False
    """Print one JSON object instead of a table."""
    compare_naive: bool = False
    """Also run a plain implementation of the model, check that the tokens agree, and show what is saved."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.compare_naive and (self.precision == "bf16" or self.tf32):
            raise UserError("--compare-naive checks for equal tokens: leave out --precision bf16 and --tf32")
        if not self.batch_sizes:
            raise UserError("--batch-sizes names nothing: give one or more")


@dataclass(frozen=True)
class Sft:
    """SFT steps on random weights, images and tokens: time, triplets per second, and memory."""

    model: ModelShape = field(default_factory=ModelShape)
    step: SftStepConfig = field(default_factory=SftStepConfig)
    effort: Effort = field(default_factory=Effort)
    batch: Annotated[int, Ge(1)] = 4
    """Triplets per step."""
    micro_batch: Annotated[int, Ge(0)] = 0
    """Triplets in one forward and backward pass; 0 for all of the batch."""
    tf32: bool = False
    """Let a GPU round the inputs of fp32 products and convolutions to TF32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it runs; auto uses a GPU if there is one."""
    threads: Threads = 0
    """CPU threads; 0 for all cores."""
    json: bool = False
    """Print one JSON object instead of a line."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.micro_batch and self.batch % self.micro_batch:
            raise UserError(f"--micro-batch {self.micro_batch}: must divide --batch {self.batch}")


@dataclass(frozen=True)
class Gpu:
    """A GPU's speed and memory in a few minutes: GRPO steps in every precision, a profile, SFT steps, and inference."""

    out: Path = Path("runs/gpu")
    """Folder for gpu.md, gpu.json and the profile."""
    minutes: Annotated[float, Gt(0)] = 8.0
    """Time limit. The most informative measurements come first; what does not fit is left out, and listed."""
    device: Literal["cuda", "cpu"] = "cuda"
    """cpu is for trying the command."""
    small: bool = False
    """Measure the small model instead of the published one, to try the command."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class Cost:
    """How time and memory grow with conditions, group, depth and image size: predicted, and measured if that is quick."""

    model: ModelShape = SMALL
    rollout: RolloutConfig = field(default_factory=lambda: RolloutConfig(group=8))
    learner: LearnerConfig = field(default_factory=lambda: LearnerConfig(lora_rank=16))
    effort: Effort = field(default_factory=Effort)
    conditions: Annotated[int, Ge(1)] = 4
    """Conditions per step (B)."""
    vary_conditions: tuple[Annotated[int, Ge(1)], ...] = (1, 2, 4, 8, 16, 32, 64)
    """Other numbers of conditions to try, while the rest stays as above."""
    vary_group: tuple[Annotated[int, Ge(2)], ...] = (2, 4, 8, 16, 32, 64)
    """Other group sizes, at least 2: a group of one has no advantages."""
    vary_depth: tuple[Annotated[int, Ge(1)], ...] = (4, 8, 12, 16, 20, 24, 30)
    """Other depths."""
    vary_image_size: tuple[Annotated[int, Ge(1)], ...] = (64, 128, 256, 512)
    """Other image sizes in pixels, with token maps that grow by 1.3 from scale to scale, as the published ones do."""
    measure_below: Annotated[float, Ge(0)] = 20.0
    """Also measure steps that should take at most so many seconds here; 0 only predicts."""
    cards: tuple[Annotated[float, Gt(0)], ...] = (24, 48, 80, 141)
    """Memory of GPUs in GB, for each of which the largest model and image of the published recipe are searched."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it runs; auto uses a GPU if there is one."""
    threads: Threads = 0
    """CPU threads; 0 for all cores."""
    json: bool = False
    """Print one JSON object instead of tables."""
    plot: Path | None = None
    """Also draw the result into this .png or .svg file."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.plot is not None:
            refuse_unknown(self.plot)


@dataclass(frozen=True)
class Credit:
    """How well --credit gradient predicts the change in reward when one token changes, for each scale."""

    init: str = demo().init
    """The policy: any source that --init of launch/grpo.py accepts."""
    vae: str = demo().vae
    """The VQ-VAE: a file, a folder, or a hub id owner/name[:file]."""
    shards: tuple[str, ...] = demo().shards
    """Conditions: shards, patterns or folders."""
    rollout: RolloutConfig = field(default_factory=lambda: replace(demo().rollout, group=6))
    reward: RewardConfig = field(default_factory=lambda: demo().reward)
    batches: Annotated[int, Ge(1)] = 8
    """Batches of conditions."""
    conditions: Annotated[int, Ge(1)] = 6
    """Conditions per batch."""
    curvature: bool = True
    """Predict with the measured curvature, as with --credit-curvature."""
    seed: int = 0
    """Seed of the conditions' order, the trajectories, and the replaced tokens."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it runs; auto uses a GPU if there is one."""
    threads: Threads = 0
    """CPU threads; 0 for all cores."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class Learn:
    """Compare variants of GRPO by their held-out gain after equal training time, over several seeds."""

    variants: tuple[str, ...] = ("trajectory", "gradient")
    """What to compare. Each is a method of --credit, or a name and flags of launch/grpo.py, as in
    "slow: --credit gradient --lr 1e-4". "all: FLAGS" gives flags to all variants."""
    out: Path = Path("runs/learn")
    """Folder of runs and results. The same command continues an interrupted comparison and repeats no finished run."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each variant is trained once with each seed."""
    seconds: Annotated[float, Ge(0)] = 300.0
    """Training time per run, without held-out scoring; 0 for no limit. A few timed steps turn it into a number of steps."""
    trajectories: Annotated[int, Ge(0)] = 0
    """Trajectories that a run may sample for training; 0 for no limit."""
    points: Annotated[int, Ge(1)] = 4
    """How often each run scores its held-out conditions after the start, evenly spread over its steps."""
    eval_conditions: Annotated[int, Ge(0)] = 0
    """Held-out conditions scored during training; 0 for all. All are scored at the start and the end."""
    eval_group: Annotated[int, Ge(1)] = 4
    """Samples per held-out condition."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"--seeds {' '.join(map(str, self.seeds))}: give one or more, each once")

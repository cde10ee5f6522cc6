"""Where one GRPO step's time goes: `python launch/bench.py step`, the run's own step on random weights and images."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from launch.benchmarks.compare import Comparison, compare_step, refuse_unlike
from launch.benchmarks.config import Effort, Step
from launch.benchmarks.model import build_model, enliven, random_conditions
from launch.benchmarks.plot import draw_phases
from launch.benchmarks.profile import write_profile
from launch.benchmarks.result import PhaseResult
from launch.common.device import choose_device, set_threads
from launch.common.text import duration, size, table
from launch.configs.grpo import GrpoConfig
from launch.configs.shape import ModelShape
from launch.rl.colocated import ColocatedWorker
from launch.sizing.flops import count_flops
from launch.sizing.memory import saved_activations
from launch.sizing.peak import product_peak
from launch.sizing.phases import Workload
from reward.cells import CELLS
from reward.config import RewardConfig
from reward.scorer import build_scorer
from stylevar.allocator import keep_freed_memory
from stylevar.contracts import References, RewardDetail, Scores
from stylevar.policy import Policy

PHASES = (
    "condition",
    "effective weights",
    "rollout",
    "decode",
    "reward",
    "reference",
    "update forward",
    "update backward",
    "optimizer",
)
TRANSFORMER = ("rollout", "reference", "update forward", "update backward")
"""The phases that consist of the transformer's blocks and head."""


class RandomRewards:
    """Random rewards that cost no time."""

    def score(self, generated_u8: Tensor, references: References, detail: RewardDetail = "none") -> Scores:
        """See `RewardScorer.score`."""
        rewards = torch.randn(generated_u8.shape[:2], device=generated_u8.device)
        more: Tensor | None = None
        if detail == "gradient":
            more = torch.randn_like(generated_u8, dtype=torch.bfloat16)
        elif detail == "map":
            more = torch.randn(*rewards.shape, CELLS, CELLS, device=rewards.device)
        elif detail == "prefixes":
            more = torch.randn(generated_u8.shape[:3], device=rewards.device)
        return Scores(rewards, {"total": -rewards}, more)


@dataclass(frozen=True)
class Steps:
    """Some steps: median seconds of each phase and of a whole one, CPU time over wall time, the last one's metrics."""

    phases: dict[str, float]
    seconds: float
    cpu_over_wall: float
    metrics: Mapping[str, float]


def run_steps(worker: ColocatedWorker, effort: Effort) -> Steps:
    """Run steps of an assembled worker, each on new conditions, so that they are encoded every time."""
    config, reports, cpu, wall = worker.config, [], 0.0, 0.0
    for step in range(effort.warmup + effort.repeat):
        batch = random_conditions(config.conditions, worker.policy.image_size, step).to(worker.device)
        start_cpu, start = time.process_time(), time.perf_counter()
        reports.append(worker.learn(step, batch).metrics)
        if step >= effort.warmup:
            cpu += time.process_time() - start_cpu
            wall += time.perf_counter() - start
    measured = reports[effort.warmup :]

    def median(tag: str) -> float:
        return statistics.median(metrics[tag] for metrics in measured)

    tags = {phase: f"time/{phase.replace(' ', '_')}" for phase in PHASES}
    phases = {phase: median(tag) for phase, tag in tags.items()} | {"other": median("time/update")}
    return Steps(phases, median("time/step"), cpu / wall, measured[-1])


@dataclass(frozen=True)
class StepResult:
    """What `--json` prints. Seconds are medians; `step` is the whole step, `transformer` its transformer phases."""

    device: str
    threads: int
    conditions: int
    group: int
    micro_batch: int
    peak_flops_per_s: float
    phases: dict[str, PhaseResult]
    transformer: PhaseResult
    step: PhaseResult
    seconds_per_trajectory: float
    cpu_over_wall: float
    rss_peak_gib: float
    cuda_peak_gib: float | None
    saved_activation_bytes: int
    logprob_mismatch_max: float
    comparison: Comparison | None

    def text(self) -> str:
        """Tables for reading."""
        named = {**self.phases, "transformer phases": self.transformer, "step": self.step}
        rows = [result.row(name, self.step.seconds) for name, result in named.items()]
        peak, cpu = f"{self.peak_flops_per_s / 1e9:.1f} GFLOP/s", f"{self.cpu_over_wall:.2f}"
        memory = f"{self.rss_peak_gib:.2f} GiB"
        memory += "" if self.cuda_peak_gib is None else f", on the GPU {self.cuda_peak_gib:.2f} GiB"
        lines = [
            f"{self.conditions} x {self.group} trajectories, {self.micro_batch} at a time, on {self.device}",
            table(("phase", "time", "of step", "FLOPs", "GFLOP/s", "of peak"), rows),
            f"{duration(self.seconds_per_trajectory)} a trajectory; peak of matrix products {peak}",
            f"CPU time over wall time {cpu} with {self.threads} threads",
            f"peak memory {memory}; saved activations {size(self.saved_activation_bytes)}",
            f"log-prob mismatch at most {self.logprob_mismatch_max:.1e}",
        ]
        return "\n".join(lines if self.comparison is None else [*lines, self.comparison.text()])


def run(bench: Step) -> None:
    """Measure the steps, print the result, and draw it with --plot."""
    result = measure(bench)
    if bench.plot is not None:
        title = f"{bench.conditions} x {bench.rollout.group} trajectories, depth {bench.model.depth}, on {result.device}"
        draw_phases(result.phases, f"{title}: {duration(result.step.seconds)} a step", bench.plot)
    print(json.dumps(asdict(result)) if bench.json else result.text())


def measure(bench: Step) -> StepResult:
    """Build the model, and run its steps. Raises UserError for settings that do not fit together."""
    config = _config(bench)
    if bench.compare_naive:
        refuse_unlike(config)
    use_threads(bench.threads, bench.scarce_memory)
    device = choose_device(config.device)
    policy = build_policy(config, bench.model, device)
    worker = ColocatedWorker()
    worker.assemble(config, policy, RandomRewards() if bench.reward == "none" else build_scorer(config.reward, device))
    peak = _peak(bench, device)
    steps = run_steps(worker, bench.effort)
    if bench.profile is not None:
        ranges = {phase.replace(" ", "_") for phase in (*PHASES, "update")}
        write_profile(lambda: run_steps(worker, Effort(repeat=1, warmup=0)), ranges, device, bench.profile)
    peak = max(peak, _peak(bench, device))  # on a busy machine, the better of two measurements
    work = Workload(policy.model.arch, config.learner, config.rollout, config.reward)
    flops = _flops(bench, work)
    result = _result(bench, steps, flops, peak, saved_activations(work, _micro_batch(bench)), device)
    if not bench.compare_naive:
        return result
    return replace(result, comparison=compare_step(worker, work, steps.phases, flops))


def _micro_batch(bench: Step) -> int:
    return bench.learner.micro_batch or bench.rollout.group


def _config(bench: Step) -> GrpoConfig:
    kind = "dreamsim" if bench.reward == "dreamsim" else "lite"
    return GrpoConfig(
        conditions=bench.conditions,
        rollout=bench.rollout,
        learner=bench.learner,
        reward=RewardConfig(kind, bench.dreamsim_type, bench.dreamsim_cache),
        precision=bench.precision,
        tf32=bench.tf32,
        compile=bench.compile,
        device=bench.device,
        threads=bench.threads,
    )


def _flops(bench: Step, work: Workload) -> dict[str, float]:
    passes, steps = bench.learner.updates_per_rollout, bench.learner.updates_per_rollout * bench.learner.minibatches
    flops = count_flops(work).per_step(bench.conditions, bench.rollout.group, passes, steps)
    return flops | {"reward": 0.0} if bench.reward == "none" else flops


def _peak(bench: Step, device: torch.device) -> float:
    return product_peak(device, torch.bfloat16 if bench.precision == "bf16" else torch.float32)


def _result(bench: Step, steps: Steps, flops: dict[str, float], peak: float, saved: int, device: torch.device) -> StepResult:
    inside = {name: steps.phases[name] for name in TRANSFORMER}
    return StepResult(
        device=str(device),
        threads=torch.get_num_threads(),
        conditions=bench.conditions,
        group=bench.rollout.group,
        micro_batch=_micro_batch(bench),
        peak_flops_per_s=peak,
        phases={name: PhaseResult.of(s, flops.get(name, 0.0), peak) for name, s in steps.phases.items()},
        transformer=PhaseResult.of(sum(inside.values()), sum(flops[name] for name in inside), peak),
        step=PhaseResult.of(steps.seconds, sum(flops.values()), peak),
        seconds_per_trajectory=steps.seconds / (bench.conditions * bench.rollout.group),
        cpu_over_wall=steps.cpu_over_wall,
        rss_peak_gib=steps.metrics["memory/rss_peak_gib"],
        cuda_peak_gib=steps.metrics.get("memory/cuda_peak_gib"),
        saved_activation_bytes=saved,
        logprob_mismatch_max=steps.metrics["policy/logprob_mismatch_max"],
        comparison=None,
    )


def use_threads(threads: int, scarce_memory: bool = False) -> None:
    """Set up the process like a worker of a run; 0 threads for all cores."""
    keep_freed_memory(scarce_memory)
    set_threads(threads)


def build_policy(config: GrpoConfig, shape: ModelShape, device: torch.device) -> Policy:
    """A policy with random weights whose adapters have an effect."""
    policy = Policy(config.policy_source(), device, build_model(shape, device, config.seed))
    enliven(policy.adapters, config.seed)
    return policy

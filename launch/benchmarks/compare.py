"""Time and FLOPs of the naive model and of ours, for the same work and with the same results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from launch.benchmarks.model import random_conditions
from launch.benchmarks.naive import NaiveModel
from launch.common.text import duration, operations, table
from launch.configs.grpo import GrpoConfig
from launch.rl.colocated import ColocatedWorker
from launch.run.telemetry import PhaseTimer
from launch.sizing.phases import META, FirstToken, Phases, Workload, over_depth
from launch.sizing.trace import count_flops_of
from stylevar.adapters import Adapters
from stylevar.contracts import ConditionBatch
from stylevar.errors import UserError
from stylevar.images import pm1_to_u8, u8_to_pm1
from stylevar.lowrank import factors
from stylevar.sampling import TrajectoryStreams
from stylevar.sampling_config import SamplingConfig

TOLERANCE = 1e-4
"""The most that log-probs may differ."""


@dataclass(frozen=True)
class Side:
    """Seconds and FLOPs by phase."""

    seconds: dict[str, float]
    flops: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """Both sides by phase, the share of tokens that both sampled alike, and the largest difference of log-probs."""

    naive: Side
    ours: Side
    tokens_equal: float
    logprob_difference_max: float

    def text(self) -> str:
        """A table for reading."""
        rows = [self._row(phase, phase) for phase in self.naive.seconds]
        header = ("naive against ours", "naive", "ours", "ratio", "naive FLOPs", "ours", "ratio")
        equal = f"{self.tokens_equal:.2%} of the tokens alike, log-probs within {self.logprob_difference_max:.1e}"
        return "\n".join([table(header, [*rows, self._row("total", *self.naive.seconds)]), equal])

    def _row(self, name: str, *phases: str) -> tuple[str, ...]:
        cells: list[str] = []
        for naive, ours, shown in (
            (self.naive.seconds, self.ours.seconds, duration),
            (self.naive.flops, self.ours.flops, operations),
        ):
            one, other = (sum(side.get(phase, 0.0) for phase in phases) for side in (naive, ours))
            cells += [shown(one), shown(other), f"{one / other:.2f}" if one and other else ""]
        return name, *cells


def compare_step(
    worker: ColocatedWorker, work: Workload, seconds: Mapping[str, float], flops: Mapping[str, float]
) -> Comparison:
    """Do the worker's step once with the naive model, one trajectory at a time; `seconds` and `flops` are the worker's own.

    `refuse_unlike` must have accepted the settings. Raises RuntimeError if the results differ.
    """
    c = worker.config
    batch = random_conditions(c.conditions, worker.policy.image_size, seed=-1).to(worker.device)
    adapters, learner = worker.adapters, worker.trainer.learner
    with adapters.effective_weights():
        ours = worker.sampler.sample(batch, c.seed, 0, worker.policy.version)
    reference = learner.reference(worker.conditions.get(batch), ours)
    timer = PhaseTimer(torch.cuda.synchronize if worker.device.type == "cuda" else None)
    steps = NaiveSteps(adapters, c.rollout, timer)
    alike, difference = [], 0.0
    for b in range(c.conditions):
        for g in range(c.rollout.group):
            tokens = ours.tokens[b : b + 1, g]
            done = steps.run(batch, b, ours.seeds[b : b + 1, g : g + 1], tokens)
            alike.append((done.tokens == tokens).float().mean())
            off = torch.stack([done.logp - ours.logp[b : b + 1, g], done.reference - reference[b : b + 1, g]])
            difference = max(difference, float(off.abs().max()))
    learner.optimizer.zero_grad(set_to_none=False)
    tokens_equal = float(torch.stack(alike).mean())
    check(tokens_equal, difference, worker.device)
    times = {tag.removeprefix("time/").replace("_", " "): spent for tag, spent in timer.take().items()}
    trajectories = c.conditions * c.rollout.group
    counted = {phase: float(trajectories * count) for phase, count in naive_flops(work).items()}
    phases = [*times, "effective weights"]
    mine = Side({p: seconds[p] for p in phases}, {p: flops[p] for p in phases})
    return Comparison(Side(times | {"effective weights": 0.0}, counted), mine, tokens_equal, difference)


def check(tokens_equal: float, logprob_difference: float, device: torch.device) -> None:
    """Raise RuntimeError if two models disagree. Tokens may differ on a GPU, which rounds the two's sums differently."""
    if device.type == "cpu" and tokens_equal < 1:
        raise RuntimeError(f"only {tokens_equal:.2%} of the naive model's tokens are ours")
    if not logprob_difference <= TOLERANCE:
        raise RuntimeError(f"log-probs of the naive model differ by {logprob_difference:.1e}, allowed are {TOLERANCE:g}")


def refuse_unlike(config: GrpoConfig) -> None:
    """Raise UserError for settings that the naive model does not have."""
    rollout = config.rollout
    plain = (rollout.kv_cache, rollout.temperature, rollout.logprob, config.precision) == ("exact", 1.0, "full", "fp32")
    if not plain or config.tf32 or config.learner.updates_per_rollout != 1:
        raise UserError(
            "--compare-naive: leave --kv-cache, --temperature, --logprob, --precision, --tf32 and --updates-per-rollout at "
            "exact, 1, full, fp32, off and 1: the naive model supports nothing else"
        )
    if config.learner.branch_after is not None:
        raise UserError("--compare-naive: the naive model draws every trajectory on its own; leave out --credit vmr")


@dataclass(frozen=True)
class Done:
    """Tokens that the naive model sampled, and policy and reference log-probs of the tokens given to it. [1, L] each."""

    tokens: Tensor
    logp: Tensor
    reference: Tensor


class NaiveSteps:
    """A step for one trajectory with the naive model; gradients add up in the adapters."""

    def __init__(self, adapters: Adapters, sampling: SamplingConfig, timer: PhaseTimer) -> None:
        scale = factors(next(iter(adapters.layers.values())))[2]
        self.model, self.sampling, self.timer = NaiveModel(adapters.model, scale), sampling, timer

    def run(self, batch: ConditionBatch, b: int, seeds: Tensor, tokens: Tensor) -> Done:
        """Sample a trajectory of condition b with the seed `seeds` [1, 1], and learn from `tokens` [1, L]."""
        model, timer = self.model, self.timer
        with torch.no_grad():
            with timer("condition"):
                reading = model.read(u8_to_pm1(batch.style[b : b + 1]), u8_to_pm1(batch.content[b : b + 1]))
            with timer("rollout"):
                stream = TrajectoryStreams(seeds, model.arch.tokens, batch.style.device)
                sampled = model.sample(reading, stream, self.sampling)
            with timer("decode"):
                pm1_to_u8(model.vae.fhat_to_img(sampled.f_hat))
            with timer("reference"):
                model.adapted = False
                reference = model.logprobs(reading, tokens)
                model.adapted = True
        with timer("update_forward"):
            logp = model.logprobs(reading, tokens)
        with timer("update_backward"):
            logp.sum().backward()
        return Done(sampled.tokens, logp.detach(), reference)


def naive_flops(work: Workload) -> dict[str, int]:
    """FLOPs of one trajectory of the naive model by phase."""
    return over_depth(work, _count)


def _count(phases: Phases) -> dict[str, int]:
    model, arch, counts = NaiveModel(phases.model), phases.work.arch, {}
    image = torch.empty(1, 3, arch.image_size, arch.image_size, device=META)
    with torch.no_grad():
        reading, counts["condition"] = count_flops_of(lambda: model.read(image, image))
        sampled, counts["rollout"] = count_flops_of(lambda: model.sample(reading, FirstToken(), phases.work.rollout))
        _, counts["decode"] = count_flops_of(lambda: phases.decode(1))
        model.adapted = False
        _, counts["reference"] = count_flops_of(lambda: model.logprobs(reading, sampled.tokens))
        model.adapted = True
    logp, counts["update forward"] = count_flops_of(lambda: model.logprobs(reading, sampled.tokens))
    _, counts["update backward"] = count_flops_of(lambda: logp.sum().backward())
    return counts

"""The settings of a GRPO update."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from learner.config import Decay, OptimizerDevice
from learner.credit.config import AdvantageNorm, CreditKind
from learner.schedule import RateSchedule
from stylevar.bounds import Remedy, check_bounds

if TYPE_CHECKING:
    from stylevar.contracts import RewardDetail

KlKind = Literal["k3", "k1", "k2", "paper", "full"]


@dataclass(frozen=True)
class LearnerConfig:
    """The GRPO update."""

    lora_rank: Annotated[int, Ge(1)] = 256
    """Rank of the adapters; alpha is twice the rank."""
    lr: Annotated[float, Gt(0)] = 1e-5
    """AdamW learning rate; with a schedule, its peak."""
    lr_schedule: RateSchedule = "constant"
    """Learning rate over the run's steps: constant, or a cosine or linear decay to --lr-end."""
    lr_warmup: Annotated[int, Ge(0)] = 0
    """Warm-up steps, over which the learning rate rises to its peak."""
    lr_end: Annotated[float, Ge(0), Le(1)] = 0.1
    """Learning rate at the end of a cosine or linear schedule, as a share of the peak."""
    lr_backoff: Annotated[float, Gt(0), Le(1)] = 0.25
    """Factor on the learning rate after each rollback, for the rest of the run; 1 to keep the rate."""
    adam_betas: tuple[Decay, Decay] = (0.9, 0.95)
    """AdamW moment decays."""
    weight_decay: Annotated[float, Ge(0)] = 0.01
    """AdamW weight decay."""
    grad_clip: Annotated[float, Gt(0), Le(math.inf)] = 1.0
    """Upper bound of the gradient's global norm."""
    clip_eps: Annotated[float, Gt(0), Lt(1)] = 0.2
    """The ratio is clipped to [1 - eps, 1 + eps]."""
    kl_beta: Annotated[float, Ge(0)] = 0.1
    """Weight of the KL penalty."""
    kl_estimator: KlKind = "k3"
    """KL(policy || reference): an estimate from samples (paper is the published code's, with reversed signs), or the sum
    over all codes (full), which has no sampling noise."""
    credit: CreditKind = "trajectory"
    """How a reward becomes advantages: one per trajectory, as published (trajectory); one for the coarse scales or the fine
    ones, in turns (vmr); one per scale, relative to the reward expected from the unfinished image before it (prefix); one
    per token, from the reward in its part of the image (local); or one for every code in each token's place, from the
    reward's gradient (gradient)."""
    credit_curvature: bool = True
    """For --credit gradient: measure the reward's curvature; without it, a code's value is linear in its vector."""
    credit_batch: Annotated[int, Ge(1)] = 8
    """For --credit gradient: images in the decoder's forward and backward pass at once; fewer need less memory."""
    credit_middle: Annotated[int, Ge(0)] = 0
    """For --credit vmr: how many scales count as coarse; 0 for those up to a quarter of the last one's side."""
    credit_eta: Annotated[float, Gt(0)] = 1.0
    """For --credit vmr: temperature of the soft value; the smaller, the more the better of two continuations counts."""
    panw_gamma: float = 0.7
    """Exponent of the per-token weights, (tokens of the scale)^-gamma; 0 weights all tokens equally."""
    adv_norm: AdvantageNorm = "std"
    """Divide advantages by the group's standard deviation (std) or not (none), or compare each reward with the mean of the
    others (leave-one-out)."""
    kl_limit: Annotated[float, Gt(0), Le(math.inf)] = 5.0
    """Step guard: drop trajectories with a larger raw KL from the step."""
    updates_per_rollout: Annotated[int, Ge(1)] = 1
    """Passes over the same trajectories."""
    minibatches: Annotated[int, Ge(1)] = 1
    """Optimizer steps per pass, each on an equal share of the conditions."""
    micro_batch: Annotated[int, Ge(0)] = 0
    """Trajectories of a group per forward and backward pass; 0 for as many as fit the memory budget."""
    recompute: bool = False
    """Keep only each block's input for the backward pass and recompute the rest: less memory, a third more work."""
    optimizer_device: OptimizerDevice = "auto"
    """Where AdamW's moments are: beside the model (device) or in host memory (cpu, slower); auto decides by the budget."""
    mismatch_limit: Annotated[float, Ge(0), Le(math.inf), Remedy("0 chooses by precision")] = 0.0
    """Largest difference of rollout's and learner's log-probs at equal weights; 0 chooses by precision (fp32: 1e-4)."""
    importance_cap: Annotated[float, Ge(0), Le(math.inf), Remedy("0 for none, or try 2")] = 0.0
    """Weight tokens from older weights by the ratio of new to old probability, at most this (try 2); 0 for no weights."""

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def reward_detail(self) -> RewardDetail:
        """The additional reward output that the credit needs."""
        from learner.credit.build import METHODS  # late: the methods compute with torch

        return METHODS[self.credit].detail

    @property
    def branch_after(self) -> int | None:
        """For `GroupSampler`: after how many scales the trajectories of a group branch (0 chooses); None if they do not."""
        return self.credit_middle if self.credit == "vmr" else None

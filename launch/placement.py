"""Which role runs where: the flags, and what each actor asks of the cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stylevar.errors import UserError

Role = Literal["rollout", "reward", "learner"]
ROLES: tuple[Role, ...] = ("rollout", "reward", "learner")


@dataclass(frozen=True)
class ClusterConfig:
    """Where the roles of a run are placed, and how they work together."""

    placement: Literal["colocated", "distributed"] = "colocated"
    """colocated: one actor process holds all roles and one copy of the weights; distributed: an actor per worker."""
    rollout_workers: int = 1
    """distributed: actors that sample trajectories (N)."""
    reward_workers: int = 1
    """distributed: actors that score images (M)."""
    learners: int = 1
    """distributed: actors that update the adapters together (K)."""
    rollout_gpus: float = 1.0
    """distributed, with GPUs: how much of one each rollout worker takes; fractions share a GPU."""
    reward_gpus: float = 1.0
    """The same for each reward worker."""
    learner_gpus: float = 1.0
    """The same for each learner."""
    rollout_cpus: float = 0.0
    """distributed: CPUs that each rollout worker reserves; 0 for an equal share of the cluster's."""
    reward_cpus: float = 0.0
    """The same for each reward worker."""
    learner_cpus: float = 0.0
    """The same for each learner."""
    unit: int = 0
    """distributed: conditions that one task samples; 0 for two tasks per rollout worker and minibatch."""
    max_staleness: Literal[0, 1, 2] = 0
    """distributed: age in updates of the weights that sample a step; with 1 or 2 rollouts run while learners update."""
    wire: Literal["fp32", "bf16"] = "fp32"
    """distributed: precision in which adapters travel to the rollout workers. With bf16 the ratio is never exactly 1."""
    check_weights: bool = False
    """distributed: after each sync and merge compare a hash of all effective weights between all workers."""
    call_timeout: float = 1800.0
    """distributed: seconds after which a call to a worker counts as hung; the worker is then replaced."""
    max_restarts: int = 3
    """distributed: how often lost learners, and each lost rollout or reward worker, are replaced before the run ends."""

    def __post_init__(self) -> None:
        for name in ("rollout_workers", "reward_workers", "learners"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 1")
        for role in ROLES:
            cpus, gpus = getattr(self, f"{role}_cpus"), getattr(self, f"{role}_gpus")
            if cpus < 0 or gpus <= 0 or (gpus > 1 and gpus != int(gpus)):
                raise UserError(
                    f"--{role}-cpus {cpus} --{role}-gpus {gpus}: CPUs must be at least 0, GPUs a positive share of one"
                )
        if self.unit < 0 or self.max_restarts < 0 or self.call_timeout <= 0:
            raise UserError(
                f"--unit {self.unit} --max-restarts {self.max_restarts} --call-timeout {self.call_timeout}: "
                "the first two must be at least 0, the last positive"
            )

    def workers(self, role: Role) -> int:
        """How many actors a role has."""
        return {"rollout": self.rollout_workers, "reward": self.reward_workers, "learner": self.learners}[role]


def split_units(conditions: int, minibatches: int, config: ClusterConfig, at_once: int) -> list[list[slice]]:
    """The conditions 0 ... B - 1 of a step in units that one task samples, a list of units per minibatch.

    Depends on the configuration alone, never on which workers are alive, so that a unit that is done again elsewhere is
    the same. `at_once` bounds a unit: as many conditions as are sampled together.
    """
    share = conditions // minibatches
    size = config.unit or min(at_once, max(1, share // (2 * config.rollout_workers)))
    cuts = []
    for start in range(0, conditions, share):
        end = start + share
        cuts.append([slice(at, min(at + size, end)) for at in range(start, end, size)])
    return cuts

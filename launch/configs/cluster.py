"""Flags that place the roles on a cluster, and the resources that each actor requests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from stylevar.bounds import check_bounds
from stylevar.errors import UserError

Role = Literal["rollout", "reward", "learner"]
ROLES: tuple[Role, ...] = ("rollout", "reward", "learner")


@dataclass(frozen=True)
class ClusterConfig:
    """Where the roles of a run are placed, and how they work together."""

    placement: Literal["colocated", "distributed"] = "colocated"
    """colocated: one actor process holds all roles and one copy of the weights; distributed: an actor per worker."""
    rollout_workers: Annotated[int, Ge(1)] = 1
    """distributed: actors that sample trajectories (N)."""
    reward_workers: Annotated[int, Ge(1)] = 1
    """distributed: actors that score images (M)."""
    learners: Annotated[int, Ge(1)] = 1
    """distributed: actors that update the adapters together (K)."""
    rollout_gpus: Annotated[float, Gt(0)] = 1.0
    """distributed, with GPUs: GPUs per rollout worker; with fractions, workers share a GPU."""
    reward_gpus: Annotated[float, Gt(0)] = 1.0
    """The same for each reward worker."""
    learner_gpus: Annotated[float, Gt(0)] = 1.0
    """The same for each learner."""
    rollout_cpus: Annotated[float, Ge(0)] = 0.0
    """distributed: CPUs that each rollout worker reserves; 0 for an equal share of the cluster's."""
    reward_cpus: Annotated[float, Ge(0)] = 0.0
    """The same for each reward worker."""
    learner_cpus: Annotated[float, Ge(0)] = 0.0
    """The same for each learner."""
    unit: Annotated[int, Ge(0)] = 0
    """distributed: conditions that one task samples; 0 for two tasks per rollout worker and minibatch."""
    max_staleness: Literal[0, 1, 2] = 0
    """distributed: how many updates old the weights that sample a step may be; with 1 or 2, rollouts run during updates."""
    wire: Literal["fp32", "bf16"] = "fp32"
    """distributed: precision of the adapters sent to the rollout workers. With bf16 the ratio is never exactly 1."""
    check_weights: bool = False
    """distributed: after each sync and merge compare a hash of all effective weights between all workers."""
    call_timeout: Annotated[float, Gt(0)] = 1800.0
    """distributed: seconds after which a call to a worker counts as hung; the worker is then replaced."""
    start_timeout: Annotated[float, Gt(0)] = 3600.0
    """distributed: the same limit for a worker that starts and loads its model, and for a role without any worker that
    waits for room on the cluster."""
    max_restarts: Annotated[int, Ge(0)] = 3
    """distributed: how often lost learners, and each lost rollout or reward worker, are replaced before the run ends."""

    def __post_init__(self) -> None:
        check_bounds(self)
        for role in ROLES:
            gpus = getattr(self, f"{role}_gpus")
            if gpus > 1 and gpus != int(gpus):
                raise UserError(f"--{role}-gpus {gpus}: must be a share of one GPU, or a whole number of GPUs")

    def workers(self, role: Role) -> int:
        """How many actors a role has."""
        return {"rollout": self.rollout_workers, "reward": self.reward_workers, "learner": self.learners}[role]


def split_units(conditions: int, minibatches: int, config: ClusterConfig, at_once: int) -> list[list[slice]]:
    """Split the conditions 0 ... B - 1 of a step into units for one sampling task each: a list of units per minibatch.

    The split depends only on the configuration, never on which workers are alive, so that a unit stays the same when
    another worker repeats it. `at_once` is the largest size of a unit: the number of conditions sampled together.
    """
    share = conditions // minibatches
    size = config.unit or min(at_once, max(1, share // (2 * config.rollout_workers)))
    cuts = []
    for start in range(0, conditions, share):
        end = start + share
        cuts.append([slice(at, min(at + size, end)) for at in range(start, end, size)])
    return cuts


Bundle = dict[str, float]


def bundles(config: ClusterConfig, there: Mapping[str, float], gpu: bool) -> dict[Role, Bundle]:
    """The resources that each actor of a role requests from a cluster with the total resources `there`."""
    actors = sum(config.workers(role) for role in ROLES)
    # Rounded down, so that all actors fit.
    share = math.floor(100 * there.get("CPU", 1) / actors) / 100
    asked: dict[Role, Bundle] = {}
    for role in ROLES:
        asked[role] = {"CPU": getattr(config, f"{role}_cpus") or max(0.01, share)}
        if gpu:
            asked[role]["GPU"] = getattr(config, f"{role}_gpus")
    return asked


def threads_per_actor(wanted: int, bundle: Bundle) -> int:
    """CPU threads of an actor: the `wanted` number, or with 0 one per reserved CPU."""
    return wanted or max(1, int(bundle["CPU"]))


def crowded(config: ClusterConfig, threads: Mapping[Role, int], cpus: float) -> bool:
    """Whether actors that compute on CPUs have more threads than there are CPUs."""
    return sum(config.workers(role) * threads[role] for role in ROLES) > cpus


def check_fits(config: ClusterConfig, asked: Mapping[Role, Bundle], nodes: Sequence[Mapping[str, float]]) -> None:
    """Raise UserError at once if the actors do not fit on `nodes` (the resources of each).

    The message names the requested and the available resources and the flags to change. Actors are packed by first-fit
    decreasing, which is good enough for a few sizes.
    """
    free = [dict(node) for node in nodes]
    wanted = [(role, asked[role]) for role in ROLES for _ in range(config.workers(role))]
    wanted.sort(key=lambda entry: (-entry[1].get("GPU", 0), -entry[1]["CPU"]))
    for role, bundle in wanted:
        node = next((n for n in free if all(n.get(kind, 0) + 1e-6 >= much for kind, much in bundle.items())), None)
        if node is None:
            plan = "; ".join(f"{config.workers(r)} {r} x {_shown(asked[r])}" for r in ROLES)
            there = "; ".join(
                _shown({k: n.get(k, 0) for k in ("CPU", "GPU") if k == "CPU" or "GPU" in bundle}) for n in nodes
            )
            what = "GPUs" if "GPU" in bundle else "CPUs"
            raise UserError(
                f"the plan does not fit: it asks for {plan}; the nodes have {there}. There is no room for all {role} "
                f"workers: lower --{_count_flag(role)}, or --{role}-{what.lower()} (a share of one lets workers share it), "
                "or start more nodes"
            )
        for kind, much in bundle.items():
            node[kind] -= much


def _count_flag(role: Role) -> str:
    return "learners" if role == "learner" else f"{role}-workers"


def _shown(bundle: Mapping[str, float]) -> str:
    return " + ".join(f"{much:g} {kind}" for kind, much in bundle.items())

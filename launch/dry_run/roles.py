"""The actors of a run, the resources that each asks for, and the schedule of a step."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from launch.configs.cluster import ROLES, Role, bundles, crowded, split_units, threads_per_actor
from launch.configs.grpo import GrpoConfig
from launch.dry_run.simulate import Schedule


@dataclass(frozen=True)
class Hardware:
    """The hardware to plan for. `own_devices`: every actor computes on a device of its own."""

    cpus: int
    gpus: int
    own_devices: bool


@dataclass(frozen=True)
class ActorPlan:
    """`count` actors of one kind, each with these resources; `threads` compute if there is no GPU."""

    name: str
    count: int
    cpus: float
    gpus: float
    threads: int


def place(config: GrpoConfig, hardware: Hardware) -> list[ActorPlan]:
    """The actors of a run."""
    on_gpu = hardware.gpus > 0 or hardware.own_devices
    if config.cluster.placement == "colocated":
        threads = config.threads or hardware.cpus
        return [ActorPlan("colocated", 1, float(min(threads, hardware.cpus)), float(on_gpu), threads)]
    asked = bundles(config.cluster, {"CPU": hardware.cpus}, on_gpu)
    return [
        ActorPlan(role, config.cluster.workers(role), b["CPU"], b.get("GPU", 0.0), threads_per_actor(config.threads, b))
        for role, b in asked.items()
    ]


def threads_of(config: GrpoConfig, hardware: Hardware) -> dict[Role, int]:
    """Threads of an actor of each role."""
    actors = place(config, hardware)
    return {role: (actors[0] if len(actors) == 1 else actors[i]).threads for i, role in enumerate(ROLES)}


def schedule_of(config: GrpoConfig, hardware: Hardware) -> Schedule:
    """The schedule of a step."""
    cluster, minibatches = config.cluster, config.learner.minibatches
    units = split_units(config.conditions, minibatches, cluster, config.rollout.at_once(config.conditions))
    threads = threads_of(config, hardware)
    return Schedule(
        units=tuple(tuple(cut.stop - cut.start for cut in minibatch) for minibatch in units),
        rollout_workers=cluster.rollout_workers,
        reward_workers=cluster.reward_workers,
        learners=cluster.learners,
        max_staleness=cluster.max_staleness,
        updates_per_rollout=config.learner.updates_per_rollout,
        cores=None if hardware.own_devices else float(hardware.cpus),
        threads=threads,
        in_turn=not hardware.own_devices and crowded(cluster, threads, hardware.cpus),
    )


def with_rollout_workers(config: GrpoConfig, workers: int) -> GrpoConfig:
    """The run, distributed over this many rollout workers."""
    cluster = dataclasses.replace(config.cluster, placement="distributed", rollout_workers=workers)
    return dataclasses.replace(config, cluster=cluster)

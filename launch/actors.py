"""The actors of a distributed run: a placement group that holds them, and how each is created in it."""

from __future__ import annotations

import itertools
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from data.actor import ConditionReader
from launch.placement import ROLES, Bundle, ClusterConfig, Role, bundles, check_fits, threads_per_actor
from learner.actor import LearnerWorker
from reward.actor import RewardWorker
from rollout.actor import RolloutWorker
from stylevar.errors import UserError

CLASSES: dict[Role, Any] = {"rollout": RolloutWorker, "reward": RewardWorker, "learner": LearnerWorker}
_created = itertools.count(1)
PLACING = 60.0
"""Seconds that a plan which fits may wait for resources that others hold."""


class Placement:
    """Reserves what a plan asks for, packed on few nodes, and creates actors there."""

    def __init__(self, config: ClusterConfig, run: str, device: str) -> None:
        """Raises UserError if the cluster cannot hold the plan, or does not within a minute. Ray is connected already."""
        there = ray.cluster_resources()
        wanted = {"auto": there.get("GPU", 0) > 0, "cuda": True, "cpu": False}[device]
        self.device = "cuda" if wanted else "cpu"
        self.asked = bundles(config, there, wanted)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        check_fits(config, self.asked, nodes)
        self.run = run
        self.first = {role: sum(config.workers(earlier) for earlier in ROLES[:i]) for i, role in enumerate(ROLES)}
        self.group: PlacementGroup = placement_group(
            [self.asked[role] for role in ROLES for _ in range(config.workers(role))],
            strategy="PACK",
            name=f"stylevar-{run}",
        )
        if not self.group.wait(PLACING):
            free = ray.available_resources()
            remove_placement_group(self.group)
            raise UserError(
                f"the cluster has room for the plan, but others hold it: free are {free.get('CPU', 0):g} CPU and "
                f"{free.get('GPU', 0):g} GPU after {PLACING:g} s; wait for them to end, or ask for fewer workers"
            )

    def names(self, role: Role, count: int) -> list[str]:
        """Readable names: rollout-0, rollout-1, ..."""
        return [f"{role}-{number}" for number in range(count)]

    def create(self, role: Role, number: int) -> Any:
        """Start actor `number` of a role in its place. It waits there for a lost node, if need be."""
        bundle: Bundle = self.asked[role]
        where = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=self.first[role] + number)
        options = {"num_cpus": bundle["CPU"], "num_gpus": bundle.get("GPU", 0), "scheduling_strategy": where}
        name = f"{role}-{number}"
        return ray.remote(CLASSES[role]).options(name=self._unique(name), **options).remote(name)

    def create_reader(self) -> Any:
        """Start the actor that reads conditions, beside the driver if that can be."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        options = {"num_cpus": 0, "scheduling_strategy": here}
        return ray.remote(ConditionReader).options(name=self._unique("reader"), **options).remote("reader")

    def threads(self, role: Role, wanted: int) -> int:
        """CPU threads of an actor of this role."""
        return threads_per_actor(wanted, self.asked[role])

    def remove(self) -> None:
        """End all actors and give the resources back."""
        remove_placement_group(self.group)

    def _unique(self, name: str) -> str:
        """Names of actors have to be unique in a job, and a replaced one may still be dying."""
        return f"stylevar-{self.run}/{name}.{next(_created)}"

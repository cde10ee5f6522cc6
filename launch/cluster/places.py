"""Reserves resources for the actors of a distributed run, and creates the actors there."""

from __future__ import annotations

import itertools
import time
from typing import Any

import ray
import torch
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from data.actor import ConditionReader
from launch.configs.cluster import ROLES, ClusterConfig, Role, bundles, check_fits, crowded, threads_per_actor
from learner.grpo.actor import LearnerWorker
from reward.actor import RewardWorker
from rollout.actor import RolloutWorker
from stylevar.errors import UserError

CLASSES: dict[Role, Any] = {"rollout": RolloutWorker, "reward": RewardWorker, "learner": LearnerWorker}
Place = tuple[Role, int]
_created = itertools.count(1)
PLACING = 60.0
"""Seconds to wait for resources that other jobs hold, if the plan fits the cluster."""


@ray.remote(num_cpus=0, max_calls=1)  # the process ends with the task and frees the GPU
def _free_memory() -> int:
    return torch.cuda.mem_get_info()[0]


class Placement:
    """Reserves a place for every actor of a plan, packed on few nodes, and creates actors there.

    Each place has its own placement group, because Ray creates no actor in a group that has lost any of its nodes.
    """

    def __init__(self, config: ClusterConfig, run: str, device: str) -> None:
        """Ray must be connected. Raises UserError if the plan does not fit the cluster, or finds no room within a minute."""
        there = ray.cluster_resources()
        wanted = {"auto": there.get("GPU", 0) > 0, "cuda": True, "cpu": False}[device]
        self.device = "cuda" if wanted else "cpu"
        self.asked = bundles(config, there, wanted)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        check_fits(config, self.asked, nodes)
        self.run, self._config = run, config
        places: list[Place] = [(role, number) for role in ROLES for number in range(config.workers(role))]
        # The largest first: otherwise small places could take the room that a large one needs.
        places.sort(key=lambda place: (-self.asked[place[0]].get("GPU", 0), -self.asked[place[0]]["CPU"]))
        self._groups = {place: self._reserve(place) for place in places}
        until = time.monotonic() + PLACING
        if not all(group.wait(max(0.1, until - time.monotonic())) for group in self._groups.values()):
            free = ray.available_resources()
            self.remove()
            raise UserError(
                f"the plan fits the cluster, but others are using it: free are {free.get('CPU', 0):g} CPU and "
                f"{free.get('GPU', 0):g} GPU after {PLACING:g} s; wait for them to finish, or ask for fewer workers"
            )

    def free_memory(self) -> dict[Role, int | None]:
        """Bytes of GPU memory that each actor of a role can use: the minimum over their GPUs. None without GPUs."""
        if self.device == "cpu":
            return dict.fromkeys(ROLES)
        free: dict[Role, list[int]] = {role: [] for role in ROLES}
        tasks = []
        for role, number in self._groups:
            gpus = self.asked[role]["GPU"]
            tasks.append((role, gpus, _free_memory.options(num_gpus=gpus, **self._where((role, number))).remote()))
        for role, gpus, task in tasks:
            free[role].append(int(min(1.0, gpus) * ray.get(task)))
        return {role: min(free[role]) for role in ROLES}

    def names(self, role: Role, count: int) -> list[str]:
        """Readable names: rollout-0, rollout-1, ..."""
        return [f"{role}-{number}" for number in range(count)]

    def create(self, role: Role, number: int) -> Any:
        """Start actor `number` of a role in its place. If the place has lost its node, the actor waits for another."""
        asked, place = self.asked[role], (role, number)
        cpus = min(asked["CPU"], self._groups[place].bundle_specs[0]["CPU"])
        options = {"num_cpus": cpus, "num_gpus": asked.get("GPU", 0), **self._where(place)}
        name = f"{role}-{number}"
        return ray.remote(CLASSES[role]).options(name=self._unique(name), **options).remote(name)

    def is_lost(self, place: Place) -> bool:
        """Whether a place has lost its node and no other node has room for it."""
        return not placement_group_table(self._groups[place])["bundles_to_node_id"][0]

    def renew(self, place: Place) -> bool:
        """Reserve a lost place again. Returns whether it was lost; its actor must then be created again.

        Otherwise Ray would search for another node so eagerly that this keeps a core busy.
        """
        if placement_group_table(self._groups[place])["state"] != "RESCHEDULING":
            return False
        remove_placement_group(self._groups[place])
        self._groups[place] = self._reserve(place)
        return True

    def take_over(self, place: Place, other: Place) -> None:
        """Give the resources reserved for `other` to `place`, which is lost, and reserve new ones for `other`."""
        remove_placement_group(self._groups[place])
        self._groups[place] = self._groups[other]
        self._groups[other] = self._reserve(other)

    def has_room(self, place: Place, role: Role) -> bool:
        """Whether a place has the GPUs that an actor of `role` needs."""
        return self._groups[place].bundle_specs[0].get("GPU", 0) >= self.asked[role].get("GPU", 0)

    def create_reader(self) -> Any:
        """Start the actor that reads conditions, on the driver's node if possible."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        options = {"num_cpus": 0, "scheduling_strategy": here}
        return ray.remote(ConditionReader).options(name=self._unique("reader"), **options).remote("reader")

    def threads(self, role: Role, wanted: int) -> int:
        """CPU threads of an actor of this role."""
        return threads_per_actor(wanted, self.asked[role])

    def crowded(self, wanted: int) -> bool:
        """Whether all actors together have more threads than the cluster has CPUs."""
        threads = {role: self.threads(role, wanted) for role in ROLES}
        return crowded(self._config, threads, ray.cluster_resources().get("CPU", 0))

    def remove(self) -> None:
        """End all actors and release their resources."""
        for group in self._groups.values():
            remove_placement_group(group)

    def _where(self, place: Place) -> dict[str, Any]:
        return {"scheduling_strategy": PlacementGroupSchedulingStrategy(self._groups[place], placement_group_bundle_index=0)}

    def _reserve(self, place: Place) -> PlacementGroup:
        role, number = place
        return placement_group([self.asked[role]], strategy="PACK", name=self._unique(f"{role}-{number}"))

    def _unique(self, name: str) -> str:
        """Actor names must be unique in a job, and a replaced actor may not have ended yet."""
        return f"stylevar-{self.run}/{name}.{next(_created)}"

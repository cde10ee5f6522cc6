"""Create the worker of a GRPO run for --placement."""

from __future__ import annotations

from launch.common.ray_cluster import join_cluster
from launch.common.stop import StopRequest
from launch.configs.grpo import GrpoConfig
from launch.rl.colocated_actor import ColocatedActor
from launch.rl.worker import Worker


def start_worker(config: GrpoConfig, stop: StopRequest) -> Worker:
    """Connect to Ray (the cluster of a job, or a local one) and create the worker that --placement names."""
    there = join_cluster()
    if config.cluster.placement == "distributed":
        from launch.cluster.distributed import DistributedRun  # late: a colocated run does not need it

        return DistributedRun(lambda: stop.requested)
    return ColocatedActor(config, there)

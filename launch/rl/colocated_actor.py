"""The colocated worker in a Ray actor, called as if it were here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ray

from launch.common.cpus import available_cpus
from launch.common.ray_cluster import why_lost
from launch.configs.grpo import GrpoConfig
from launch.rl.colocated import ColocatedWorker
from launch.rl.worker import WorkerLost
from stylevar.errors import UserError


class ColocatedActor:
    """Every method of `ColocatedWorker` waits for the remote one.

    Errors come back as they were raised; WorkerLost if the actor's process is gone, which nobody replaces.
    """

    def __init__(self, config: GrpoConfig, there: Mapping[str, float]) -> None:
        """`there`: the cluster's resources. Raises UserError if they are too few."""
        wants_gpu = config.device == "cuda" or (config.device == "auto" and there.get("GPU", 0) >= 1)
        cpus = min(config.threads or available_cpus(), int(there.get("CPU", 1)))
        asked = {"CPU": cpus, "GPU": 1 if wants_gpu else 0}
        for kind, count in asked.items():
            if there.get(kind, 0) < count:
                raise UserError(
                    f"the plan needs {count} {kind}, the Ray cluster has {there.get(kind, 0):g}: "
                    f"give --device cpu or fewer --threads, or start Ray where they are"
                )
        options = {"name": f"stylevar-{config.name}", "num_cpus": cpus, "num_gpus": asked["GPU"]}
        self._actor: Any = ray.remote(ColocatedWorker).options(**options).remote()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *arguments: self._wait(name, getattr(self._actor, name).remote(*arguments))

    def close(self) -> None:
        """End the actor, whether or not it still lives."""
        ray.kill(self._actor)

    @staticmethod
    def _wait(name: str, reference: Any) -> Any:
        try:
            return ray.get(reference)
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
            raise WorkerLost(f"the worker was lost during `{name}`: {why_lost(error)}") from error
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            raise

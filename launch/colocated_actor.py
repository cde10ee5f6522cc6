"""The colocated worker in a Ray actor, called as if it were here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ray

from launch.colocated import ColocatedWorker
from launch.config import GrpoConfig
from launch.cpus import available_cpus
from stylevar.errors import UserError


class ColocatedActor:
    """Every method of `ColocatedWorker` waits for the remote one. Errors come back as they were raised."""

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
        self._actor = ray.remote(ColocatedWorker).options(**options).remote()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *arguments: self._wait(getattr(self._actor, name).remote(*arguments))

    @staticmethod
    def _wait(reference: Any) -> Any:
        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            raise

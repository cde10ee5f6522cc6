"""The colocated worker in a Ray actor, with the interface of a local worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import ray

from launch.common.cpus import available_cpus
from launch.common.loading import loading
from launch.common.ray_cluster import why_lost
from launch.configs.grpo import GrpoConfig
from launch.rl.worker import Worker, WorkerLost
from learner.grpo.merging import MergeAction
from stylevar.errors import UserError

if TYPE_CHECKING:
    from launch.rl.reports import HeldoutReport, StepReport

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class ColocatedHost:
    """The actor: a `ColocatedWorker`, imported only here. It takes seconds, during which the driver loads what it needs."""

    def __init__(self) -> None:
        with loading():
            from launch.rl.colocated import ColocatedWorker

        self.worker: Worker = ColocatedWorker()

    def call(self, name: str, *arguments: Any, **named: Any) -> Any:
        """The worker's method `name`."""
        return getattr(self.worker, name)(*arguments, **named)


class ColocatedActor:
    """Forwards every method of `Worker` to the `ColocatedWorker` in the actor, and waits for the result.

    Errors are raised as they were in the actor. Raises WorkerLost if the actor's process is gone; it is not replaced.
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
                    f"give --device cpu or fewer --threads, or start Ray on nodes that have them"
                )
        options = {"name": f"stylevar-{config.name}", "num_cpus": cpus, "num_gpus": asked["GPU"]}
        self._handle: Any = ray.remote(ColocatedHost).options(**options).remote()

    def setup(self, config: GrpoConfig, checkpoint: Path | None) -> dict[str, Any]:
        return self._call(Worker.setup, config, checkpoint)

    def settings(self) -> GrpoConfig:
        return self._call(Worker.settings)

    def step(self, step: int) -> StepReport:
        return self._call(Worker.step, step)

    def evaluate(self, name: str, conditions: int | None = None) -> HeldoutReport:
        return self._call(Worker.evaluate, name, conditions)

    def apply(self, action: MergeAction) -> None:
        self._call(Worker.apply, action)

    def save(self, folder: Path, base: str) -> None:
        self._call(Worker.save, folder, base)

    def save_base(self, folder: Path) -> None:
        self._call(Worker.save_base, folder)

    def save_policy(self, folder: Path) -> None:
        self._call(Worker.save_policy, folder)

    def restart(self, checkpoint: Path | None) -> None:
        self._call(Worker.restart, checkpoint)

    def summary(self) -> str:
        return self._call(Worker.summary)

    def close(self) -> None:
        """End the actor, even if it has already died."""
        ray.kill(self._handle)

    def _call(
        self,
        method: Callable[Concatenate[Worker, Arguments], Result],
        *arguments: Arguments.args,
        **named: Arguments.kwargs,
    ) -> Result:
        """Run a method of the actor's worker and wait for the result."""
        name = method.__name__
        try:
            result: Result = ray.get(self._handle.call.remote(name, *arguments, **named))
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
            raise WorkerLost(f"the worker was lost during `{name}`: {why_lost(error)}") from error
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            raise
        return result

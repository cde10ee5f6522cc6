"""A colocated run whose one worker is killed: one line that says what died and how to go on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import ray
from grpo_files import config, write_inputs

from launch.common.ray_cluster import init_patiently
from launch.configs.grpo import GrpoConfig
from launch.rl.colocated_actor import ColocatedActor
from launch.rl.run import execute
from launch.run.run_folder import find_resume
from stylevar.errors import UserError


@pytest.fixture(scope="module")
def cluster():
    init_patiently(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield {"CPU": 2.0}
    ray.shutdown()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


class Killed(ColocatedActor):
    """Its process gets SIGKILL at the beginning of a step, or of the setup, as from the kernel when memory runs out."""

    def __init__(self, settings: GrpoConfig, there: dict[str, float], at: int | None) -> None:
        super().__init__(settings, there)
        self.at = at

    def setup(self, settings: GrpoConfig, checkpoint: Path | None):
        if self.at is None:
            self.kill()
        return super().setup(settings, checkpoint)

    def step(self, step: int):
        if step == self.at:
            self.kill()
        return super().step(step)

    def kill(self) -> None:
        os.kill(ray.get(self._handle.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)


def test_a_killed_worker_is_one_line_and_the_command_that_goes_on(cluster, inputs, tmp_path):
    settings = config(inputs, tmp_path)
    with pytest.raises(UserError) as ended:
        execute(settings, None, Killed(settings, cluster, at=3))
    message = str(ended.value)
    assert "the worker was lost during `step`: its process was killed, perhaps because memory ran out" in message
    assert message.endswith(f"python launch/grpo.py --resume {tmp_path / 'run'}")
    assert "\n" not in message
    point = find_resume(str(tmp_path / "run"), tmp_path)
    assert point is not None
    assert point.step == 3


@pytest.mark.slow
def test_a_worker_that_is_killed_while_it_loads_leaves_nothing_to_resume(cluster, inputs, tmp_path):
    settings = config(inputs, tmp_path)
    with pytest.raises(UserError, match="lost during `setup`.*nothing was saved yet: start again"):
        execute(settings, None, Killed(settings, cluster, at=None))
    assert not (tmp_path / "run").exists()

"""One protocol, three workers: what the driver of a GRPO run calls is there, and is called in the same way."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from launch.cluster.distributed import DistributedRun
from launch.rl import run
from launch.rl.colocated import ColocatedWorker
from launch.rl.colocated_actor import ColocatedActor
from launch.rl.worker import Worker

CALLS = sorted(name for name in vars(Worker) if not name.startswith("_"))


def parameters(owner: type, name: str) -> dict[str, object]:
    """Names and defaults. Ray gives methods of its actors one more, `_ray_trace_ctx`."""
    found = inspect.signature(getattr(owner, name)).parameters
    return {key: value.default for key, value in found.items() if not key.startswith("_ray")}


@pytest.mark.parametrize("placement", [ColocatedWorker, ColocatedActor, DistributedRun])
def test_every_placement_is_a_worker(placement):
    for name in CALLS:
        assert name in vars(placement), f"{placement.__name__} does not spell out {name}"
        assert parameters(placement, name) == parameters(Worker, name), name
    assert not hasattr(placement, "__getattr__")


def test_the_protocol_is_what_the_driver_calls():
    tree = ast.parse(Path(run.__file__).read_text(encoding="utf-8"))
    called = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and (
            (isinstance(node.value, ast.Name) and node.value.id == "worker")
            or (isinstance(node.value, ast.Attribute) and node.value.attr == "worker")
        )
    }
    assert sorted(called) == CALLS

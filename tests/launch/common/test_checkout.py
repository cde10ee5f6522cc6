"""The checkout that was started runs in every process, whatever lies in the current folder or is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch.common.checkout import PACKAGES, ROOT

PROGRAM = '''
"""Says where each process finds our packages, and whether `report` is one of them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import importlib.util
import json

import ray

from launch.common.checkout import PACKAGES
from launch.common.ray_cluster import join_cluster
from launch.supervised.data import load_steps


def found():
    return {name: importlib.import_module(name).__file__ for name in PACKAGES}


class Batches:
    """Micro-batches as `load_steps` takes them."""

    per_step = 1

    def __getitem__(self, number):
        return found()


def main():
    folders = {"driver": found(), "top-level report": importlib.util.find_spec("report") is not None}
    folders["loading process"] = next(load_steps(Batches(), 0, 1, workers=1))[0]
    join_cluster()
    folders["Ray worker"] = ray.get(ray.remote(found).remote())
    ray.shutdown()
    print("FOUND" + json.dumps(folders))


if __name__ == "__main__":
    main()
'''
DECOY = """
import os, sys
with open(os.environ["DECOYS"], "a") as file:
    file.write(f"{__file__} in {sys.argv}\\n")
"""


@pytest.fixture
def second(tmp_path) -> Path:
    """Another checkout than the one that is installed here."""
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / "second" / name, ignore=shutil.ignore_patterns("*.tar", "*.safetensors"))
    (tmp_path / "second" / "launch" / "where.py").write_text(PROGRAM)
    return tmp_path / "second"


@pytest.fixture
def own(tmp_path) -> Path:
    """A user's folder of files that are called as our packages are. They leave a note when somebody imports them."""
    folder = tmp_path / "own"
    for name in ("stylevar", "launch"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(DECOY)
    for name in ("data", "reward", "rollout", "learner"):
        (folder / f"{name}.py").write_text(DECOY)
    return folder


@pytest.mark.slow
def test_all_processes_run_the_checkout_that_was_started(second, own, tmp_path):
    notes = tmp_path / "notes"
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": f"{own}{os.pathsep}{ROOT}", "DECOYS": str(notes)}
    command = [sys.executable, str(second / "launch" / "where.py")]
    done = subprocess.run(command, cwd=own, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    folders = json.loads(done.stdout.partition("FOUND")[2])
    expected = {name: str(second / name / "__init__.py") for name in PACKAGES}
    assert {where: folders[where] for where in ("driver", "loading process", "Ray worker")} == {
        "driver": expected,
        "loading process": expected,
        "Ray worker": expected,
    }
    assert not notes.exists(), notes.read_text()
    assert not folders["top-level report"]

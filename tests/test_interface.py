"""What users and old runs rely on, frozen: a change here is a change for them, and is made on purpose.

After such a change, write the new lists with:  python -m pytest tests/test_interface.py --update-interface
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_flags import flags

import stylevar
from launch.configs.grpo import GrpoConfig
from launch.configs.io import RunConfig, as_kept
from launch.configs.sft import SftConfig
from launch.rl.progress import Progress
from launch.run.run_folder import RunFolder, flat
from learner.grpo.merging import MergeConfig, MergeController

FROZEN = Path(__file__).parent / "golden" / "interface.json"


def settings(config: RunConfig) -> list[str]:
    """The keys of a run's config.yaml, nested ones with dots."""
    return sorted(flat(as_kept(config)))


def interface(tmp_path: Path) -> dict[str, Any]:
    run = RunFolder.create(tmp_path / "run", {})
    with run.checkpoint(3) as folder:
        Progress(MergeController(MergeConfig())).save(folder / "progress.json")
    progress = json.loads((run.checkpoint_path(3) / "progress.json").read_text())
    return {
        "flags": {" ".join(command): sorted(names) for command, names in sorted(flags().items())},
        "stylevar": sorted(stylevar.__all__),
        "config.yaml of a GRPO run": settings(GrpoConfig()),
        "config.yaml of an SFT run": settings(SftConfig()),
        "progress.json": sorted([*progress, *(f"controller.{key}" for key in progress["controller"])]),
        "run folder": sorted(path.relative_to(run.path).as_posix() for path in run.path.rglob("*")),
    }


def test_the_interface_is_as_it_was(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    found = interface(tmp_path)
    if request.config.getoption("--update-interface"):
        FROZEN.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    frozen = json.loads(FROZEN.read_text(encoding="utf-8"))
    assert found.keys() == frozen.keys()
    for name, expected in frozen.items():
        assert found[name] == expected, name

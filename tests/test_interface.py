"""What users and old runs rely on, frozen: a change here is a change for them, and is made on purpose.

After such a change, write the new lists with:  python -m pytest tests/test_interface.py --update-interface
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from command_flags import flags

import stylevar
from launch.configs.grpo import GrpoConfig
from launch.configs.sft import SftConfig
from launch.rl.loop import Progress
from launch.run.run_folder import RunFolder
from learner.grpo.merging import MergeConfig, MergeController

FROZEN = Path(__file__).parent / "golden" / "interface.json"


def settings(config: Any, prefix: str = "") -> list[str]:
    """The keys of a run's config.yaml, nested ones with dots."""
    found: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        nested = dataclasses.is_dataclass(value)
        found += settings(value, f"{prefix}{field.name}.") if nested else [f"{prefix}{field.name}"]
    return sorted(found)


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

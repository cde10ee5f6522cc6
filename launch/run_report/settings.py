"""A run's settings compared with the defaults of its preset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from launch.configs.grpo import PRESETS
from launch.configs.io import to_plain
from launch.configs.sft import SftConfig
from launch.run_report.record import RunRecord

_OF_THE_PLACE = {"preset", "config", "name", "runs", "resume"}


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of nested settings."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", list(value) if isinstance(value, (tuple, list)) else value


def changed_settings(record: RunRecord) -> list[tuple[str, Any, Any]]:
    """(name, value, default) of all settings that differ from those of the run's preset."""
    if record.kind == "sft":
        default = to_plain(SftConfig())
    else:
        default = to_plain(PRESETS.get(record.config.get("preset", "paper"), PRESETS["paper"])())
    known = dict(flat(default))
    return [
        (name, value, known.get(name, "unknown"))
        for name, value in flat(record.config)
        if name.split(".")[0] not in _OF_THE_PLACE and (name not in known or known[name] != value)
    ]

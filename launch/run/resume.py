"""Check which settings a resumed run may change, and whether any steps are left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from data.patterns import expand_shards
from launch.run.run_folder import ResumePoint, finished_at, flat
from stylevar.errors import UserError

NOT_SETTINGS = ("resume", "config")
"""Flags that determine how a program starts, not what a run does."""
SHARDS = ("shards", "heldout", "novel", "val_shards")
FILES = (*SHARDS, "init", "var", "vae", "image_encoder")


class NothingLeft(Exception):
    """The run to resume has done all its steps and written its model. The message says so."""


def check_changes(point: ResumePoint, before: Any, after: Any, may_change: Sequence[str]) -> None:
    """Reject changes from the run's settings `before` to `after` that would not fit its checkpoint.

    Both are config dataclasses with absolute paths. `may_change` holds names such as "steps" and "learner.lr", or a whole
    group such as "cluster". A run without a checkpoint starts over and may change everything except its folder. Raises
    UserError that lists the rejected changes and the settings that may change.
    """
    old, new = flat(asdict(before)), flat(asdict(after))
    place = ("name", "runs")
    refused = [
        name
        for name in new
        if name not in NOT_SETTINGS
        and not _same(name, old[name], new[name])
        and (name in place or (point.checkpoint is not None and not _listed(name, may_change)))
    ]
    if not refused:
        return
    said = ", ".join(f"{_flag(name)} from {_shown(old[name])} to {_shown(new[name])}" for name in refused)
    moved = f" (if files have moved, correct {point.run / 'config.yaml'})" if set(refused) & set(FILES) else ""
    listed = ", ".join(_flag(name) if name in new else f"all flags of {name}" for name in may_change)
    raise UserError(
        f"--resume {point.run} cannot change {said}: start a new run for that{moved}; what may change is {listed}"
    )


def check_steps(point: ResumePoint, steps: int) -> None:
    """Raises UserError if the checkpoint is beyond `steps`, and NothingLeft if the run is finished at `steps`."""
    if point.step > steps:
        raise UserError(
            f"--resume {point.checkpoint} is at step {point.step}, beyond --steps {steps}: give more --steps, or resume an "
            f"earlier checkpoint"
        )
    if point.step == steps == finished_at(point.run):
        raise NothingLeft(
            f"run {point.run} is finished at step {steps}, nothing is left to do: its model is {point.run / 'model'}; "
            f"give more --steps to continue"
        )


def check_minutes(point: ResumePoint, trained: float, minutes: float) -> None:
    """Raises NothingLeft if the run is finished and has `trained` for all its `minutes`."""
    if trained >= minutes and point.step == finished_at(point.run):
        raise NothingLeft(
            f"run {point.run} is finished after {minutes:g} minutes of training, nothing is left to do: its model is "
            f"{point.run / 'model'}; give more --minutes to continue"
        )


def _listed(name: str, may_change: Sequence[str]) -> bool:
    return name in may_change or any(name.startswith(f"{group}.") for group in may_change)


def _same(name: str, old: Any, new: Any) -> bool:
    """Whether two values mean the same. Shards may be listed one by one or given as a pattern."""
    if old == new:
        return True
    if name not in SHARDS or not old or not new:
        return False
    try:
        files = [set(expand_shards(some)) for some in (old, new)]
    except UserError:
        return False
    return files[0] == files[1]


def _flag(name: str) -> str:
    return "--" + name.rpartition(".")[2].replace("_", "-")


def _shown(value: Any) -> str:
    if isinstance(value, list):
        more = f" and {len(value) - 3} more" if len(value) > 4 else ""
        return " ".join(map(str, value[:3] if more else value)) + more or "none"
    return "none" if value is None else str(value)

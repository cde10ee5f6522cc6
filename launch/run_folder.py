"""A run on disk: its config, TensorBoard events, trajectories, merges, and checkpoints that appear whole or not at all.

<run>/config.yaml
<run>/tensorboard/
<run>/trajectories/
<run>/merges/merge_0001/
<run>/checkpoints/step_00000300/
<run>/checkpoints/latest, best          relative links to two of them
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from launch.atomic import ASIDE, file_aside, folder_aside, remove, sync
from launch.commands import quoted
from stylevar.errors import UserError

_CHECKPOINT = re.compile(r"step_(\d{8,})")
_MERGE = re.compile(r"merge_(\d{4,})")


@dataclass(frozen=True)
class ResumePoint:
    """Where a run goes on: `checkpoint` of `step`, or None and 0 for a run that was cut short before its first one."""

    run: Path
    checkpoint: Path | None
    step: int


class RunFolder:
    """One run's folder, written by one process. Make it with `create` (new run) or `open` (resumed run)."""

    def __init__(self, path: Path, keep: int = 3) -> None:
        if keep < 1:
            raise UserError(f"{keep} checkpoints to keep: must be at least 1, or the run could not be resumed")
        self.path = path
        self.keep = keep
        self.config = path / "config.yaml"
        self.tensorboard = path / "tensorboard"
        self.trajectories = path / "trajectories"
        self.merges = path / "merges"
        self.checkpoints = path / "checkpoints"

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any], keep: int = 3) -> RunFolder:
        """Lay out a new run at `path` and write its config.

        Raises UserError if something is there already (nothing is touched then) or the place is not writable.
        """
        run = cls(path, keep)
        run.check_free()
        run._make_folders()
        with file_aside(run.config) as aside:
            aside.write_text(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")
        return run

    @classmethod
    def open(cls, path: Path, keep: int = 3) -> RunFolder:
        """An existing run, to be continued; what an interrupted write left behind is removed."""
        if not path.is_dir():
            raise UserError(f"run folder {path} does not exist: check the path, or start a new run without --resume")
        run = cls(path, keep)
        run._make_folders()
        for folder in (run.path, run.trajectories, run.merges, run.checkpoints):
            for leftover in folder.glob(f"{ASIDE}*"):
                remove(leftover)
        return run

    def check_free(self) -> None:
        """Raises UserError if there is something at this place already."""
        if self.path.is_dir() and any(self.path.iterdir()):
            raise UserError(
                f"run folder {self.path} already exists and is not empty: continue it with {quoted('--resume', self.path)}, "
                "or choose another --name"
            )

    @contextmanager
    def final_model(self) -> Iterator[Path]:
        """As `checkpoint`, for the finished model, in `model/`."""
        with folder_aside(self.path / "model") as aside:
            yield aside

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return _numbered(self.checkpoints, _CHECKPOINT)

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint of `step` is, or will be."""
        return self.checkpoints / f"step_{step:08d}"

    def merge_path(self, index: int) -> Path:
        """Where merge number `index` (1, 2, ...) is, or will be."""
        return self.merges / f"merge_{index:04d}"

    @contextmanager
    def checkpoint(self, step: int) -> Iterator[Path]:
        """Yield an empty folder to write into; it becomes the checkpoint of `step` if the block ends without an error.

        Then `latest` points to it, and all but the last `keep` checkpoints and the targets of the links are removed.
        """
        with folder_aside(self.checkpoint_path(step)) as aside:
            yield aside
        self._link("latest", step)
        self._prune()

    @contextmanager
    def merge(self, index: int) -> Iterator[Path]:
        """As `checkpoint`, for the files of merge number `index`; merges are never pruned."""
        with folder_aside(self.merge_path(index)) as aside:
            yield aside

    def mark_best(self, step: int) -> None:
        """Point `best` at the checkpoint of `step`, which has to exist; it is kept while it is the best."""
        if not self.checkpoint_path(step).is_dir():
            raise ValueError(f"no checkpoint of step {step} in {self.checkpoints}")
        self._link("best", step)
        self._prune()

    def rewind(self, step: int, merges: int) -> None:
        """Remove checkpoints after `step` and merges after number `merges`: the run will write them again."""
        for later in (s for s in self.steps() if s > step):
            remove(self.checkpoint_path(later))
        for later in (m for m in _numbered(self.merges, _MERGE) if m > merges):
            remove(self.merge_path(later))
        for name in ("latest", "best"):
            link = self.checkpoints / name
            if link.is_symlink() and not link.exists():
                link.unlink()
        if self.checkpoint_path(step).is_dir():
            self._link("latest", step)

    def _make_folders(self) -> None:
        try:
            for folder in (self.tensorboard, self.trajectories, self.merges, self.checkpoints):
                folder.mkdir(parents=True, exist_ok=True)
            # A read-only file system or a full disk shows only when something is written.
            with tempfile.NamedTemporaryFile(dir=self.path, prefix=ASIDE) as probe:
                probe.write(b"\0")
        except OSError as error:
            raise UserError(
                f"run folder {self.path} is not writable ({error.strerror or error}): choose another --runs or --name"
            ) from error

    def _link(self, name: str, step: int) -> None:
        aside = self.checkpoints / f"{ASIDE}{name}"
        aside.unlink(missing_ok=True)
        aside.symlink_to(self.checkpoint_path(step).name)
        os.replace(aside, self.checkpoints / name)
        sync(self.checkpoints)

    def _prune(self) -> None:
        linked = {os.path.basename(os.path.realpath(self.checkpoints / name)) for name in ("latest", "best")}
        for step in self.steps()[: -self.keep]:
            path = self.checkpoint_path(step)
            if path.name not in linked:
                remove(path)


def find_resume(resume: str, runs: Path, name: str | None = None) -> ResumePoint | None:
    """What `--resume` means.

    A path names a run (its last complete checkpoint is used) or one of a run's checkpoints; UserError if there is
    nothing to resume. "auto" takes run `name` in the folder `runs`, or without a name the run there with the newest
    checkpoint, and returns None if there is none, so that one command line both starts a run and restarts it.
    """
    if resume != "auto":
        return _resume_path(Path(resume))
    if name is not None:
        folder = runs / name
        return _last(folder) if folder.is_dir() and any(folder.iterdir()) else None
    points = [_last(folder) for folder in sorted(runs.iterdir()) if folder.is_dir()] if runs.is_dir() else []
    found = [(point.checkpoint.stat().st_mtime, point.step, point) for point in points if point.checkpoint]
    return max(found, key=lambda entry: entry[:2])[2] if found else None


def _resume_path(path: Path) -> ResumePoint:
    if not path.is_dir():
        raise UserError(f"--resume {path}: no such folder; name a run, one of its checkpoints, or auto")
    checkpoint = path.resolve()  # through latest and best
    match = _CHECKPOINT.fullmatch(checkpoint.name)
    if match and checkpoint.parent.name == "checkpoints":
        return ResumePoint(checkpoint.parent.parent, checkpoint, int(match[1]))
    point = _last(path)
    if point.checkpoint is None:
        raise UserError(f"--resume {path}: holds no complete checkpoint; start a new run with another --name")
    return point


def _last(run: Path) -> ResumePoint:
    # The highest number rather than `latest`: a crash between the rename and the link must not lose a checkpoint.
    folder = RunFolder(run)
    steps = folder.steps()
    return ResumePoint(run, folder.checkpoint_path(steps[-1]), steps[-1]) if steps else ResumePoint(run, None, 0)


def _numbered(folder: Path, pattern: re.Pattern[str]) -> list[int]:
    matches = (pattern.fullmatch(entry.name) for entry in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(match[1]) for match in matches if match)

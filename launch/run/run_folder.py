"""A run on disk: its config, TensorBoard events, trajectories, merges, and checkpoints that are written atomically.

<run>/config.yaml                       the settings in force
<run>/changes.yaml                      changes to them by --resume, each with its step
<run>/tensorboard/
<run>/trajectories/
<run>/merges/merge_0001/
<run>/checkpoints/step_00000300/
<run>/checkpoints/latest, best          relative links to two of them; files with their names where links cannot be made
<run>/heldout/                          held-out scores, with samples at the start and the end (GRPO)
<run>/model/                            the finished model
<run>/.lock                             names the process that writes here
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import sys
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.common.commands import quoted
from launch.configs.io import to_plain
from launch.run.run_lock import LOCK, RunBusy, only_writer
from stylevar.atomic import ASIDE, folder_aside, remove, sync
from stylevar.errors import UserError
from stylevar.hub import LINKS, followed
from stylevar.text import check_path
from stylevar.text_files import read_text
from stylevar.yaml_files import read_yaml, write_yaml

TRAINING = "training.json"
"""File in `model/` that records how the model was trained."""
SIZES = "sizes.json"
"""File in a checkpoint with the size of every other file, by which a damaged checkpoint is recognised."""
_CHECKPOINT = re.compile(r"step_(\d{8,})")
_MERGE = re.compile(r"merge_(\d{4,})")
_SCORES = re.compile(r".+_(\d{8,})\.(json|npz|png)")
_NO_LINKS = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@dataclass(frozen=True)
class ResumePoint:
    """Where a run continues: at the `checkpoint` of `step`, or with None and 0 if it was stopped before its first one.

    damaged: newer checkpoints that were passed over, and what is wrong with each.
    """

    run: Path
    checkpoint: Path | None
    step: int
    damaged: tuple[str, ...] = ()


class RunFolder:
    """One run's folder, written by one process. Make it with `create` (new run) or `open` (resumed run)."""

    def __init__(self, path: Path, keep: int = 3) -> None:
        if keep < 1:
            raise UserError(f"{keep} checkpoints to keep: must be at least 1, or the run could not be resumed")
        self.path = path
        self.keep = keep
        self.config = path / "config.yaml"
        self.changes = path / "changes.yaml"
        self.tensorboard = path / "tensorboard"
        self.trajectories = path / "trajectories"
        self.merges = path / "merges"
        self.checkpoints = path / "checkpoints"
        self.heldout = path / "heldout"
        self.model = path / "model"
        self._opened: int | None = None

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any], keep: int = 3) -> RunFolder:
        """Create a new run at `path` and write its config.

        Raises UserError if `path` already holds something, which is then left untouched, or if it is not writable.
        """
        check_path(path, "run folder", utf8=True)
        run = cls(path, keep)
        run.check_free()
        run._make_writable()
        run._remove_leftovers()
        # The config comes first: a folder with a config can be resumed, and a folder without one is not a run yet.
        with _explained(path):
            write_yaml(run.config, dict(config))
        run._make_folders()
        run._hold()
        return run

    @classmethod
    def open(cls, path: Path, keep: int = 3) -> RunFolder:
        """Open an existing run to continue it. Removes what interrupted writes left behind."""
        if not os.path.isdir(path):
            raise UserError(f"run folder {path} does not exist: check the path, or start a new run without --resume")
        run = cls(path, keep)
        run._make_writable()
        run._make_folders()
        run._remove_leftovers()
        run._hold()
        return run

    def check_free(self) -> None:
        """Raises UserError if the folder already holds something."""
        if holds_run(self.path):
            raise UserError(
                f"run folder {self.path} already exists and is not empty: continue it with {quoted('--resume', self.path)}, "
                "or choose another --name"
            )

    def resume_with(self, config: Mapping[str, Any], step: int) -> None:
        """Make `config` the run's settings from `step` on, and record the changes in changes.yaml.

        The run is rewound to `step`, so changes recorded for that step or later never took effect and are dropped.
        """
        new = to_plain(config)
        old = flat(_kept(self.config) or {})
        history = self._history()
        for entry in reversed([entry for entry in history if entry["step"] >= step]):
            old |= {name: values["from"] for name, values in entry["changed"].items()}
        history = [entry for entry in history if entry["step"] < step]
        now = flat(new)
        names = [name for name in now if name in old and now[name] != old[name]]
        if names and step:  # a run that starts over has done no steps with its old settings
            changed = {name: {"from": old[name], "to": now[name]} for name in names}
            history.append({"step": step, "changed": changed})
        # The history first: if the program ends in between, the next resume finds the old settings and removes the entry.
        if history:
            write_yaml(self.changes, history)
        else:
            self.changes.unlink(missing_ok=True)
        write_yaml(self.config, new)

    def _history(self) -> list[dict[str, Any]]:
        """The entries of changes.yaml. UserError if it holds anything else."""
        entries = _kept(self.changes) or []
        whole = isinstance(entries, list) and all(
            isinstance(entry, dict) and isinstance(entry.get("step"), int) and isinstance(entry.get("changed"), dict)
            for entry in entries
        )
        if not whole or not all(isinstance(v, dict) and "from" in v for e in entries for v in e["changed"].values()):
            raise UserError(f"{self.changes} is damaged: restore it, or remove it to go on without the earlier changes")
        return entries

    @contextmanager
    def final_model(self, steps: int, notes: Mapping[str, Any] | None = None) -> Iterator[Path]:
        """Like `checkpoint`, for the final model of a run of `steps` steps, in `model/`.

        `notes` are saved in its training.json.
        """
        self.check_place()
        with folder_aside(self.model) as aside:
            yield aside
            (aside / TRAINING).write_text(json.dumps({"steps": steps, **(notes or {})}, indent=2) + "\n")

    def finished_at(self) -> int | None:
        """Number of steps after which the run wrote its final model; None without a model, or if the number is unknown."""
        return finished_at(self.path)

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
        """Yield an empty folder to write into. It becomes the checkpoint of `step` if the block ends without an error.

        `latest` then points to it. Older checkpoints are removed, except the last `keep` and the targets of the links.
        Raises FileNotFoundError if the run's folder was moved.
        """
        self.check_place()
        with folder_aside(self.checkpoint_path(step)) as aside:
            yield aside
            sizes = {str(file.relative_to(aside)): file.stat().st_size for file in aside.rglob("*") if file.is_file()}
            (aside / SIZES).write_text(json.dumps(sizes, indent=2) + "\n")
        self._link("latest", step)
        self._prune()

    @contextmanager
    def merge(self, index: int) -> Iterator[Path]:
        """Like `checkpoint`, for the files of merge number `index`. Merges are never removed."""
        self.check_place()
        with folder_aside(self.merge_path(index)) as aside:
            yield aside

    def mark_best(self, step: int) -> None:
        """Point `best` at the checkpoint of `step`, which must exist. It is kept while it is the best."""
        if not self.checkpoint_path(step).is_dir():
            raise ValueError(f"no checkpoint of step {step} in {self.checkpoints}")
        self._link("best", step)
        self._prune()

    def rewind(self, step: int, merges: int) -> None:
        """Remove checkpoints, scores and the model after `step`, and merges after number `merges`.

        The run will write them again.
        """
        for later in (s for s in self.steps() if s > step):
            remove(self.checkpoint_path(later))
        for later in (m for m in _numbered(self.merges, _MERGE) if m > merges):
            remove(self.merge_path(later))
        for name in LINKS:
            if self.linked(name) is None:
                (self.checkpoints / name).unlink(missing_ok=True)
        if self.checkpoint_path(step).is_dir():
            self._link("latest", step)
        for file in self.heldout.iterdir() if self.heldout.is_dir() else ():
            match = _SCORES.fullmatch(file.name)
            if match and int(match[1]) > step:
                remove(file)
        if (self.finished_at() or 0) > step:
            remove(self.model)

    def linked(self, name: str) -> Path | None:
        """The checkpoint that `latest` or `best` points to; None if there is none."""
        folder = followed(self.checkpoints / name)
        return folder.resolve() if folder.is_dir() else None

    def check_place(self) -> None:
        """Raises FileNotFoundError if the folder was moved or removed: its path may lead into another run."""
        if self.place() != self.path:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))

    def place(self) -> Path | None:
        """Where the folder is now: at `path`, or beside it under another name; None if it is in neither place."""
        if self._opened is None:
            return self.path
        opened = os.fstat(self._opened)

        def is_it(folder: Path) -> bool:
            return folder.is_dir() and os.path.samestat(folder.stat(), opened)

        if is_it(self.path):
            return self.path
        return next(filter(is_it, self.path.parent.iterdir()), None) if self.path.parent.is_dir() else None

    def _hold(self) -> None:
        """Keep the folder open: as long as it is, no other folder can get its number on the disk."""
        self._opened = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._opened)

    def missing(self) -> Path | None:
        """The first of the run's folders that was removed; None if all exist."""
        folders = (self.tensorboard, self.trajectories, self.merges, self.checkpoints)
        return next((folder for folder in folders if not folder.is_dir()), None)

    def _make_writable(self) -> None:
        with _explained(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            # Only writing reveals a read-only file system or a full disk.
            with tempfile.NamedTemporaryFile(dir=self.path, prefix=ASIDE) as probe:
                probe.write(b"\0")

    def _remove_leftovers(self) -> None:
        """Remove what interrupted writes left behind."""
        for folder in (self.path, self.trajectories, self.merges, self.checkpoints, self.heldout):
            for leftover in folder.glob(f"{ASIDE}*"):
                remove(leftover)

    def _make_folders(self) -> None:
        with _explained(self.path):
            for folder in (self.tensorboard, self.trajectories, self.merges, self.checkpoints):
                folder.mkdir(exist_ok=True)

    def _link(self, name: str, step: int) -> None:
        aside, target = self.checkpoints / f"{ASIDE}{name}", self.checkpoint_path(step).name
        aside.unlink(missing_ok=True)
        try:
            aside.symlink_to(target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            aside.write_text(f"{target}\n")
            sync(aside)
        os.replace(aside, self.checkpoints / name)
        sync(self.checkpoints)

    def _prune(self) -> None:
        linked = [self.linked(name) for name in LINKS]
        kept = {folder.name for folder in linked if folder is not None}
        for step in self.steps()[: -self.keep]:
            path = self.checkpoint_path(step)
            if path.name not in kept:
                remove(path)


def numbered(path: Path) -> Iterator[Path]:
    """`path`, and then `path`-2, `path`-3, ..."""
    yield path
    yield from (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))


def first_free(path: Path) -> Path:
    """The first of the `numbered` folders that is empty or does not exist."""
    return next(folder for folder in numbered(path) if not holds_run(folder))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Hold the lock of the first `numbered` folder that holds no run and that no other process is writing."""
    with ExitStack() as lock:
        for folder in numbered(path):
            if holds_run(folder):
                continue
            try:
                lock.enter_context(only_writer(folder))
            except RunBusy:
                continue
            yield folder
            return


def holds_run(path: Path) -> bool:
    """Whether the folder holds anything except a lock and the remains of interrupted writes."""
    if not os.path.isdir(path):
        return False
    return any(entry.name != LOCK and not entry.name.startswith(ASIDE) for entry in path.iterdir())


def finished_at(run: Path) -> int | None:
    """See `RunFolder.finished_at`."""
    try:
        return json.loads((run / "model" / TRAINING).read_text()).get("steps")
    except (OSError, ValueError, AttributeError):
        return None


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {"learner.lr": value}, in plain YAML types."""
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{prefix}{name}.")
        else:
            values[f"{prefix}{name}"] = _plain(value)
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def find_resume(resume: str, runs: Path, name: str | None = None) -> ResumePoint | None:
    """The point that `--resume` refers to.

    A path names a run, whose last complete checkpoint is used, or one of a run's checkpoints. If newer checkpoints of the
    run are damaged, stderr says so. Raises UserError if there is nothing to resume.

    "auto" selects the run `name` in the folder `runs`, or without a name the run with the newest checkpoint there. It
    returns None if there is no such run, so that the same command line both starts and resumes a run.
    """
    point = _resume_auto(runs, name) if resume == "auto" else _resume_path(Path(resume))
    if point is not None and point.damaged:
        print(f"warning: {'; '.join(point.damaged)}: continuing from the one of step {point.step}", file=sys.stderr)
    return point


def _resume_auto(runs: Path, name: str | None) -> ResumePoint | None:
    if name is not None:
        folder = runs / name
        return _last(folder) if holds_run(folder) else None
    points = [_last(folder) for folder in sorted(runs.iterdir()) if folder.is_dir()] if os.path.isdir(runs) else []
    dated = [(point.checkpoint.stat().st_mtime, point.step, point) for point in points if point.checkpoint]
    return max(dated, key=lambda entry: entry[:2])[2] if dated else None


def _resume_path(path: Path) -> ResumePoint:
    path = followed(path)
    if not os.path.isdir(path):
        raise UserError(f"--resume {path}: no such folder; name a run, one of its checkpoints, or auto")
    checkpoint = path.resolve()  # through latest and best
    match = _CHECKPOINT.fullmatch(checkpoint.name)
    if match and checkpoint.parent.name == "checkpoints":
        return ResumePoint(checkpoint.parent.parent, checkpoint, int(match[1]))
    point = _last(Path(os.path.abspath(path)))  # "." has no name, but a run needs one
    if point.checkpoint is None and not RunFolder(point.run).config.is_file():
        raise UserError(f"--resume {path}: holds neither a checkpoint nor a config.yaml; name a run, or start a new one")
    return point


def _last(run: Path) -> ResumePoint:
    # The highest number rather than `latest`: a crash between the rename and the link must not lose a checkpoint.
    folder = RunFolder(run)
    steps, damaged = folder.steps(), list[str]()
    for step in reversed(steps):
        checkpoint = folder.checkpoint_path(step)
        if (damage := _damage(checkpoint)) is None:
            return ResumePoint(run, checkpoint, step, tuple(damaged))
        damaged.append(f"checkpoint {checkpoint} is damaged ({damage})")
    # If none is whole, whoever reads the last one says best what it lacks.
    return ResumePoint(run, folder.checkpoint_path(steps[-1]), steps[-1]) if steps else ResumePoint(run, None, 0)


def _damage(checkpoint: Path) -> str | None:
    """Which file of a checkpoint is missing or has another size than when it was written; None if there is none.

    Checkpoints of older versions do not tell.
    """
    try:
        sizes = dict(json.loads(read_text(checkpoint / SIZES)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError):
        return f"{SIZES} cannot be read"
    for name, size in sizes.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if (found := file.stat().st_size) != size:
            return f"{name} has {found} bytes instead of {size}"
    return None


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"run folder {path} is not writable ({error.strerror or error}): choose another --runs or --name"
        ) from error


def _kept(path: Path) -> Any:
    """The content of one of the run's YAML files; None if it does not exist."""
    return read_yaml(path, "restore it, or start a new run") if path.is_file() else None


def _numbered(folder: Path, pattern: re.Pattern[str]) -> list[int]:
    matches = (pattern.fullmatch(entry.name) for entry in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(match[1]) for match in matches if match)

"""Reads everything that a run's folder records. Files that are damaged or missing are left out and noted."""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from launch.configs.io import RunKind, kind_of
from launch.run.run_folder import finished_at
from launch.run.telemetry import HOST
from stylevar.errors import UserError
from stylevar.parquet_files import read_parquet
from stylevar.text import check_path
from stylevar.text_files import read_text
from stylevar.yaml_files import read_yaml

EVENT = "merge/event/"
"""Prefix of the scalars that mark a merge or a rollback: the rest is the name of what was done."""
RENAMED = {"time/merge": "time/effective_weights"}
"""Curves that older versions wrote under another name."""
Array = NDArray[Any]


@dataclass(frozen=True)
class Series:
    """A scalar over time: `steps` done, int64 [N] ascending, and `values` float64 [N]."""

    steps: Array
    values: Array

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class Picture:
    """A picture of a step, as the bytes of its PNG."""

    step: int
    png: bytes


@dataclass(frozen=True)
class Mark:
    """A merge or rollback after a step."""

    step: int
    kind: str


@dataclass(frozen=True)
class Start:
    """A process that worked on the run: when it started (seconds since 1970), at which step, and on which machine."""

    time: float
    step: int
    host: dict[str, str]


@dataclass
class RunRecord:
    """A run's folder in memory. All steps are counted from 1: what a step reports is at the number of steps done.

    `rows` has one entry per trajectory, {column: [N]}; `notes` says what could not be read.
    """

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    scalars: dict[str, Series] = field(default_factory=dict)
    pictures: dict[str, list[Picture]] = field(default_factory=dict)
    rows: dict[str, Array] = field(default_factory=dict)
    heldout: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    starts: list[Start] = field(default_factory=list)
    last_time: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def kind(self) -> RunKind:
        """grpo or sft, by the config, or by the curves where that cannot be read."""
        return "sft" if not self.config and "loss/train" in self.scalars else kind_of(self.config)

    @property
    def done(self) -> int:
        """Steps done, as far as curves tell of them."""
        tags = ("reward/mean", "loss/train")
        return max((int(self.scalars[tag].steps[-1]) for tag in tags if tag in self.scalars), default=0)

    @property
    def finished(self) -> bool:
        """Whether the run reached its end: it has a final model, and was not extended after that."""
        return (self.path / "model").is_dir() and self.done <= (finished_at(self.path) or self.done)

    def marks(self) -> list[Mark]:
        """Merges and rollbacks in the order of their steps."""
        named = [
            Mark(int(step), tag.removeprefix(EVENT))
            for tag, series in self.scalars.items()
            if tag.startswith(EVENT)
            for step in series.steps
        ]
        return sorted(named, key=lambda mark: mark.step)


def read_run(path: Path) -> RunRecord:
    """Read a run's folder. Raises UserError if it is not one."""
    if not path.is_dir():
        raise UserError(f"{path} is not a folder: give the folder of a run, such as runs/demo")
    check_path(path, "run", utf8=True)
    if not (path / "config.yaml").is_file() and not (path / "tensorboard").is_dir():
        raise UserError(f"{path} is not a run, it has neither config.yaml nor tensorboard/: give a folder such as runs/demo")
    record = RunRecord(path)
    _read_config(record)
    _read_events(record)
    _count_steps_done(record)
    _read_rows(record)
    _read_heldout(record)
    return record


def _read_config(record: RunRecord) -> None:
    file = record.path / "config.yaml"
    try:
        values = read_yaml(file, "restore it")
    except UserError as error:
        record.notes.append(f"config.yaml is left out: {error}")
        return
    if isinstance(values, dict):
        record.config = values
    else:
        record.notes.append("config.yaml is left out: it holds no settings")


def _read_events(record: RunRecord) -> None:
    # Imported here: it takes seconds.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = record.path / "tensorboard"
    files = sorted(folder.glob("events.out.tfevents.*"))
    if (strange := next((file for file in files if not file.is_file()), None)) is not None:
        raise UserError(f"{strange} is not a regular file, so it cannot be read: remove it")
    if not files:
        record.notes.append("tensorboard/ holds no event file: there are no curves and no pictures")
        return
    for file in files:
        at = _cut_off(file)
        if at is not None:
            record.notes.append(
                f"{file.name} is cut off at byte {at} (the run was killed or is still writing): it is shown up to there"
            )
    # It would report every purge of a resumed run.
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 1}).Reload()
    curves: dict[str, dict[int, float]] = {}
    for tag in sorted(events.Tags()["scalars"], key=lambda tag: tag not in RENAMED):  # older names, older values first
        points = curves.setdefault(RENAMED.get(tag, tag), {})
        points.update((event.step, event.value) for event in events.Scalars(tag))  # of a step that was redone, the last
        record.last_time = max(record.last_time, max(event.wall_time for event in events.Scalars(tag)))
    for tag, points in curves.items():
        steps = sorted(points)
        record.scalars[tag] = Series(np.array(steps, np.int64), np.array([points[step] for step in steps], np.float64))
    for tag in events.Tags()["images"]:
        record.pictures[tag] = [Picture(event.step, event.encoded_image_string) for event in events.Images(tag)]
    record.starts = [start for file in files if (start := _start(file)) is not None]


def _count_steps_done(record: RunRecord) -> None:
    """Older versions of GRPO put a step's curves at its number, counted from 0, and did not write the run's kind."""
    if not record.config or "kind" in record.config or record.kind == "sft":
        return

    def of_a_step(tag: str) -> bool:
        return not tag.partition("/")[0].endswith("_full")  # the scores before and after

    for tag, series in record.scalars.items():
        if of_a_step(tag):
            record.scalars[tag] = Series(series.steps + 1, series.values)
    for tag, pictures in record.pictures.items():
        if of_a_step(tag):
            record.pictures[tag] = [Picture(picture.step + 1, picture.png) for picture in pictures]


def _cut_off(file: Path) -> int | None:
    """Where a file of TFRecords (length, checksum, content, checksum) ends too early, or None."""
    size, at = file.stat().st_size, 0
    with file.open("rb") as stream:
        while at < size:
            header = stream.read(12)
            length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else size
            if at + 16 + length > size or not length:  # no event is empty
                return at
            at += 16 + length
            stream.seek(at)
    return None


def _start(file: Path) -> Start | None:
    """Who wrote an event file, from its first events."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    time, step = 0.0, 0
    for event in EventFileLoader(str(file)).Load():
        time = time or event.wall_time
        if event.HasField("session_log"):
            step = max(step, event.step)
        for value in event.summary.value if event.HasField("summary") else ():
            if value.tag != f"{HOST}/text_summary":
                return Start(time, step, {})
            return Start(time, event.step, _host(value.tensor.string_val))
    return Start(time, step, {}) if time else None


def _host(texts: Sequence[bytes]) -> dict[str, str]:
    """The machine that an event names; empty if the event is damaged."""
    try:
        host = json.loads(texts[0])
    except (IndexError, ValueError, RecursionError):
        return {}
    return {str(name): str(value) for name, value in host.items()} if isinstance(host, dict) else {}


def _read_rows(record: RunRecord) -> None:
    tables: list[pa.Table] = []
    schema = pa.schema([])
    for file in sorted((record.path / "trajectories").glob("*.parquet")):
        try:
            if not file.is_file():
                raise OSError("not a regular file")
            table = read_parquet(file)
            together = pa.unify_schemas([schema, table.schema])
            table.column("step").cast(pa.int64())
        except (OSError, KeyError, pa.ArrowException) as error:
            record.notes.append(f"trajectories/{file.name} is left out, it cannot be read: {_reason(error)}")
            continue
        tables.append(table)
        schema = together
    if tables:
        table = pa.concat_tables(tables, promote_options="default")
        record.rows = {name: table[name].to_numpy() for name in table.column_names}
        record.rows["step"] = record.rows["step"] + 1


def _read_heldout(record: RunRecord) -> None:
    """{set: [scores, by step]} of heldout/<set>_<step>.json."""
    for file in sorted((record.path / "heldout").glob("*_*.json")):
        try:
            scores = json.loads(read_text(file))
            parts = {**scores["components"], "reward": [float(np.mean(row)) for row in scores["rewards"]]}
            kept = {"step": int(scores["step"]), "keys": scores["keys"], "parts": parts}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            record.notes.append(f"heldout/{file.name} is left out, it cannot be read: {_reason(error)}")
            continue
        record.heldout.setdefault(file.stem.rpartition("_")[0], []).append(kept)


def paired(record: RunRecord) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Every held-out set that has two scores of the same conditions, with the first and the last of them."""
    for name, scores in record.heldout.items():
        first, last = scores[0], scores[-1]
        if first is not last and first["keys"] == last["keys"]:
            yield name, first, last


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

"""Write a run's report: one HTML page with its curves, samples, signs of a gamed reward, time, faults and settings.

python launch/report.py                 # of the newest run
python launch/report.py runs/demo
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro
from annotated_types import Ge, Le

from launch.common import cli
from launch.common.loading import loading
from launch.run.newest_run import RUNS, newest_first
from stylevar.atomic import file_aside
from stylevar.bounds import check_bounds
from stylevar.errors import UserError
from stylevar.text import check_path, printable


@dataclass(frozen=True)
class ReportConfig:
    run: tyro.conf.Positional[Path | None] = None
    """The run's folder, of GRPO or SFT; by default the newest one in `runs`. The run may still be going."""
    out: Path | None = None
    """Output file; by default report.html in the run's folder. An existing file is replaced."""
    grids: Annotated[int, Ge(1)] = 12
    """Sample grids of each kind to show, spread evenly over the run."""
    drift: Annotated[float, Ge(0), Le(inf)] = 0.1
    """Warn if a statistic of the samples loses more than this share of its first value while the reward rises."""
    runs: Path = RUNS
    """Folder of all runs, searched for the newest."""

    def __post_init__(self) -> None:
        check_bounds(self)


def newest(runs: Path) -> Path:
    """The newest run in `runs`. UserError if there is none."""
    candidates = newest_first(runs)
    if not candidates:
        raise UserError(f"no run in the folder {runs}: start one with launch/grpo.py, or name the folder of a run")
    return candidates[0]


def main(config: ReportConfig) -> None:
    with loading():
        from launch.run_report.page import render
        from launch.run_report.record import read_run

    run = config.run or newest(config.runs)
    record = read_run(run)
    page = render(record, config.grids, config.drift)
    out = config.out or run / "report.html"
    check_path(out, "--out")
    try:
        with file_aside(out) as aside:
            aside.write_text(printable(page), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror or error}): choose another --out") from error
    for note in record.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{printable(out)}: {len(page) / 1e6:.1f} MB; open it in a browser")


if __name__ == "__main__":
    cli.run(main, ReportConfig)

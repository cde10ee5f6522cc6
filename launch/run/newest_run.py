"""The runs in a folder, the newest first: what a program takes that is told of none."""

from __future__ import annotations

from pathlib import Path

from stylevar.source import is_run

RUNS = Path("runs")
"""Where runs are written, and looked for, unless something else is said."""


def newest_first(runs: Path = RUNS) -> list[Path]:
    """All runs in `runs`, the one that wrote last before all others; none if there is no such folder."""
    found = [folder for folder in runs.iterdir() if is_run(folder)] if runs.is_dir() else []
    return sorted(found, key=_last_written, reverse=True)


def _last_written(run: Path) -> float:
    curves = (run / "tensorboard").iterdir() if (run / "tensorboard").is_dir() else ()
    return max(file.stat().st_mtime for file in (run / "config.yaml", *curves))

"""The runs in a folder, newest first. Programs use the newest run by default."""

from __future__ import annotations

from pathlib import Path

from stylevar.source import is_run

RUNS = Path("runs")
"""Default folder for writing and finding runs."""


def newest_first(runs: Path = RUNS) -> list[Path]:
    """All runs in the folder `runs`, the most recently written first; empty if the folder does not exist."""
    folders = [folder for folder in runs.iterdir() if is_run(folder)] if runs.is_dir() else []
    return sorted(folders, key=_last_written, reverse=True)


def _last_written(run: Path) -> float:
    curves = (run / "tensorboard").iterdir() if (run / "tensorboard").is_dir() else ()
    return max(file.stat().st_mtime for file in (run / "config.yaml", *curves))

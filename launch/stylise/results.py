"""The result files of stylising: one PNG per result, written atomically, and a grid as an overview."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from torch import Tensor

from launch.common.grids import draw_table, reward_captions
from launch.stylise.loading import LoadedPair
from launch.stylise.pictures import PICTURES
from stylevar.atomic import file_aside
from stylevar.errors import UserError
from stylevar.pictures import from_u8, to_u8
from stylevar.text import NAME_BYTES, check_path, printable, shortened

GRID_ROWS = 64


@dataclass
class Results:
    """The files of every pair's results, and the data for the final grid and reward table."""

    files: dict[str, list[Path]]
    grid: Path
    prefix: str = ""
    """Prefix of the names of files beside the results."""
    goes_on: bool = False
    """Whether earlier results are kept along with the new ones."""
    done: int = 0
    _rows: list[list[Tensor]] = field(default_factory=list)
    _captions: list[list[str]] = field(default_factory=list)
    _scores: list[tuple[str, float]] = field(default_factory=list)

    @property
    def said(self) -> str:
        return "1 result is" if self.done == 1 else f"{self.done} results are"

    @property
    def folder(self) -> Path:
        return self.grid.parent

    def beside(self, name: str) -> Path:
        """The path of a file about these results."""
        return self.grid.with_name(f"{self.prefix}{name}")

    def keep(self, pair: LoadedPair, pictures: Sequence[Image.Image], rewards: Tensor | None) -> None:
        """Save a pair's results, best first if they have rewards [num_samples]. UserError if they cannot be written."""
        paths = self.files[pair.name]
        for picture, path in zip(pictures, paths, strict=True):
            save_png(picture, path)
        self.done += len(paths)
        if rewards is not None:
            self._scores += zip((printable(path.name) for path in paths), rewards.tolist(), strict=True)
        if len(self._rows) < GRID_ROWS:
            seen = [pair.content.image_u8, pair.style.image_u8]
            side = max(seen[0].shape)
            self._rows.append([*seen, *(_thumbnail(picture, side) for picture in pictures)])
            self._captions.append(["", "", *([] if rewards is None else reward_captions(rewards))])

    def finish(self) -> None:
        """Draw the grid of the first results, and write the rewards if there are any. UserError as in `keep`."""
        if not self._rows:
            return
        samples = len(self._rows[0]) - 2
        titles = ["content", "style", *(["result"] if samples == 1 else [f"result {i}" for i in range(samples)])]
        save_png(from_u8(draw_table(self._rows, titles, self._captions if self._scores else None)), self.grid)
        if self._scores:
            self._write_rewards(self.beside("rewards.csv"))

    def _write_rewards(self, table: Path) -> None:
        """Write a CSV file of results and rewards. If this call continues an earlier one, the earlier rows are kept."""
        rows: dict[str, str] = {}
        if self.goes_on and table.exists():
            with table.open(newline="", encoding="utf-8-sig") as file:  # a spreadsheet may have saved it since
                rows = {row["file"]: row["reward"] for row in csv.DictReader(file)}
        rows |= {name: f"{reward:.5f}" for name, reward in self._scores}
        with file_aside(table) as aside, aside.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("file", "reward"), *rows.items()])


def plan_results(out: Path, names: Sequence[str], samples: int, overwrite: bool, skip_existing: bool) -> Results:
    """The result files for `samples` of each named pair; with `skip_existing`, only of pairs with missing results.

    UserError if a result already exists, if `out` is one file for many results, or if it cannot be written.
    """
    check_path(out, "--out")
    if out.suffix.lower() in PICTURES and not out.is_dir():
        if out.suffix.lower() != ".png" or len(names) * samples != 1:
            raise UserError(f"--out {out}: give a folder for {len(names) * samples} results, or a .png file for one")
        prefix = f"{shortened(out.stem, NAME_BYTES - 20)}_"  # leaves room for "rewards.csv"
        results = Results({names[0]: [out]}, out.with_name(f"{prefix}grid.png"), prefix)
    else:
        numbers = [""] if samples == 1 else [f"__{i}" for i in range(samples)]
        results = Results({name: [out / f"{name}{number}.png" for number in numbers] for name in names}, out / "grid.png")
    if skip_existing:
        results.goes_on = True
        results.files = {name: paths for name, paths in results.files.items() if not all(p.exists() for p in paths)}
    elif not overwrite:
        every = [*(path for paths in results.files.values() for path in paths), results.grid]
        if existing := [path for path in every if path.exists()]:
            raise UserError(
                f"{existing[0]} exists: choose another --out, replace the results with --overwrite, "
                f"or keep them with --skip-existing"
            )
    try:
        results.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}): choose another place") from error
    return results


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a picture as PNG, atomically. UserError if the file cannot be written."""
    try:
        with file_aside(path) as aside:
            picture.save(aside, format="PNG")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}): choose another --out") from error


def _thumbnail(picture: Image.Image, side: int) -> Tensor:
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return to_u8(small)

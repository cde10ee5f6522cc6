"""Find a user's pictures and pair them: files, folders, patterns, lists, and CSV files of pairs."""

from __future__ import annotations

import csv
import glob
import io
import itertools
import os
import re
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.patterns import expand_braces, find_paths
from stylevar.atomic import file_aside
from stylevar.errors import UserError
from stylevar.text import clipped, printable, safe_name, shortened
from stylevar.text_files import read_text

PICTURES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
UNREADABLE = re.compile(
    r"\.(heic|heif|avif|jxl|jp2|svg|psd|xcf|eps|raw|dng|cr2|cr3|nef|arw|orf|rw2|raf|tga|dds|ico|ppm|pgm|exr|hdr)",
    re.IGNORECASE,
)
"""File name endings of unsupported picture formats."""
SHOWN = 5
_NAME_BYTES = 100  # a result's file name holds two names and a number, and most file systems allow 255 bytes


@dataclass(frozen=True)
class PairFiles:
    """The files of two pictures, and the name of their result: a file name without ending."""

    name: str
    content: Path
    style: Path


@dataclass
class Failures:
    """Files and lines that could not be used, with the reasons. They do not stop the work on the rest."""

    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, what: str, reason: str) -> None:
        """Record that `what`, a file or a line, cannot be used."""
        self.reasons[printable(what)] = printable(reason)

    def lines(self, record: Path) -> list[str]:
        """Lines for the console: the number of failures, the first few, and that the file `record` lists all."""
        if not self.reasons:
            return []
        shown = [f"  {reason}" for reason in list(self.reasons.values())[:SHOWN]]
        more = [f"  and {len(self.reasons) - SHOWN} more"] if len(self.reasons) > SHOWN else []
        return [f"{len(self.reasons)} could not be used (all in {record}):", *shown, *more]

    def write(self, record: Path) -> None:
        """Write all failures to a CSV file with the columns what and reason; remove the file if there are none."""
        if not self.reasons:
            record.unlink(missing_ok=True)
            return
        with file_aside(record) as aside, aside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["what", "reason"])
            writer.writerows(self.reasons.items())


def find_pictures(sources: Sequence[Path], failures: Failures | None = None) -> list[Path]:
    """The pictures of all sources, each once; see `pictures_at`."""
    failures = Failures() if failures is None else failures
    by_place: dict[str, Path] = {}
    for source in sources:
        for file in pictures_at(source, failures):
            by_place.setdefault(os.path.realpath(file), file)
    return list(by_place.values())


def pictures_at(source: Path, failures: Failures) -> list[Path]:
    """The files of a picture's path, a folder (all pictures in it), a .txt list, or a pattern.

    A folder's pictures in unsupported formats are recorded in `failures`. UserError if there are no pictures.
    """
    files: list[Path] = []
    for path in expand_braces([source]):
        if os.path.isdir(path):  # pathlib would raise an error for impossible paths
            files += pictures_in(path, failures)
        elif path.suffix.lower() == ".txt" and os.path.isfile(path):
            files += _listed(path)
        elif os.path.exists(path):
            files.append(path)
        elif matches := [file for file in find_paths(path) if file.is_file()]:
            files += matches
        else:
            problem = "matches no file" if glob.has_magic(str(path)) else "does not exist"
            raise UserError(f"{clipped(path)} {problem}: give a picture, a folder, a pattern, or a .txt list of pictures")
    return files


def pictures_in(folder: Path, failures: Failures) -> list[Path]:
    """The pictures of a folder, sorted by name. Those in unsupported formats are recorded in `failures`.

    UserError if the folder has no picture in a supported format.
    """
    try:
        there = sorted(file for file in folder.iterdir() if not file.name.startswith(".") and not file.is_dir())
    except OSError as error:
        raise UserError(f"folder {printable(folder)} cannot be read ({error.strerror}): check its permissions") from error
    for file in (unread := [file for file in there if UNREADABLE.fullmatch(file.suffix)]):
        failures.add(str(file), f"{file}: {file.suffix} files are not supported; convert it to JPEG or PNG")
    files = [file for file in there if file.suffix.lower() in PICTURES]
    if not files:
        others = f"; {len(unread)} such as {unread[0].name} are not supported" if unread else ""
        raise UserError(f"no picture in {printable(folder)}: it needs files that end in {' '.join(PICTURES)}{others}")
    return files


def _listed(table: Path) -> list[Path]:
    """The files in a text file, one per line, relative to it. Their names may contain bytes that are not UTF-8."""
    try:
        text = read_text(table, "utf-8-sig", "surrogateescape")
    except OSError as error:
        raise UserError(f"{printable(table)} cannot be read ({error.strerror or error}): give a text file") from error
    if "\0" in text:
        raise UserError(f"{printable(table)} is not a list of files in UTF-8: save it as text in UTF-8")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{printable(table)} lists no pictures: write one path on each line")
    return [table.parent / os.path.expanduser(line) for line in lines]


def all_pairs(contents: Sequence[Path], styles: Sequence[Path]) -> list[PairFiles]:
    """Every content with every style, named CONTENT__STYLE."""
    pairs: dict[str, PairFiles] = {}
    style_names = unique_names(styles)
    for c, content in unique_names(contents).items():
        for s, style in style_names.items():
            name = _free(f"{c}__{s}", pairs)
            pairs[name] = PairFiles(name, content, style)
    return list(pairs.values())


def unique_names(files: Iterable[Path]) -> dict[str, Path]:
    """{name: file}. The name is the stem; if several files share it, the ending and then a number are added.

    The names are valid for new files: see `safe_name` and `shortened`.
    """
    files = list(files)
    stems = Counter(file.stem for file in files)
    named: dict[str, Path] = {}
    for file in files:
        name = _short(file.stem if stems[file.stem] == 1 else file.name.replace(".", "_"))
        named[_free(name, named)] = file
    return named


def _short(name: str) -> str:
    return shortened(safe_name(name), _NAME_BYTES)


def _free(name: str, taken: Container[str]) -> str:
    """`name`, or the first of `name`_2, `name`_3, ... that is not taken."""
    numbered = (f"{name}_{number}" for number in itertools.count(2))
    return next(free for free in itertools.chain([name], numbered) if free not in taken)


def read_pairs(table: Path, failures: Failures) -> list[PairFiles]:
    """The pairs of a CSV file with the columns content, style and, optionally, name. Paths are relative to the file.

    Unusable lines are recorded in `failures`. UserError if the file is not such a table, or is empty.
    """
    pairs: dict[str, PairFiles] = {}
    for line, row in _rows(table):
        where = f"{table} line {line}"
        content, style, name = ((row.get(column) or "").strip() for column in ("content", "style", "name"))
        # Use os.path: pathlib raises errors for users that do not exist and for names that are too long.
        files = [table.parent / os.path.expanduser(path) for path in (content, style)]
        given = zip((content, style), files, strict=True)
        missing = [clipped(file) for cell, file in given if cell and not os.path.isfile(file)]
        if not content or not style:
            failures.add(where, f"{where}: {'style' if content else 'content'} is empty")
        elif missing:
            failures.add(where, f"{where}: {' and '.join(missing)} does not exist")
        elif name != shortened(safe_name(name), 2 * _NAME_BYTES):
            failures.add(where, f"{where}: {clipped(name)!r} is not a file name of at most {2 * _NAME_BYTES} bytes")
        elif name in pairs:
            failures.add(where, f"{where}: the name {name} is taken by an earlier line")
        else:
            if not name:
                name = _free(f"{_short(files[0].stem)}__{_short(files[1].stem)}", pairs)
            pairs[name] = PairFiles(name, *files)
    return list(pairs.values())


def _rows(table: Path) -> list[tuple[int, dict[str, str | None]]]:
    """The rows with their line numbers."""
    try:
        # utf-8-sig: spreadsheets begin files with a byte order mark.
        reader = csv.DictReader(io.StringIO(read_text(table, "utf-8-sig"), newline=""))
        columns = [column.strip() for column in reader.fieldnames or []]
        reader.fieldnames = columns
        rows = [(reader.line_num, row) for row in reader]
    except UnicodeDecodeError as error:
        raise UserError(f"--pairs {table} is not UTF-8 text (byte {error.start}): save it as CSV in UTF-8") from error
    except csv.Error as error:
        raise UserError(f"--pairs {table} is not a CSV file ({error}): save it as CSV in UTF-8") from error
    except OSError as error:
        raise UserError(f"--pairs {table} cannot be read ({error.strerror or error}): give a CSV file") from error
    if absent := [column for column in ("content", "style") if column not in columns]:
        first = ",".join(columns) or "nothing"
        raise UserError(f"--pairs {table} has no column {' and '.join(absent)}: its first line is {first[:100]!r}")
    if not rows:
        raise UserError(f"--pairs {table} has no pairs: it ends after the line of column names")
    return rows

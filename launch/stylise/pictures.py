"""Finding a user's pictures and pairing them: files, folders, patterns, lists, and CSV files of pairs."""

from __future__ import annotations

import csv
import glob
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

PICTURES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
UNREADABLE = re.compile(
    r"\.(heic|heif|avif|jxl|jp2|svg|psd|xcf|eps|raw|dng|cr2|cr3|nef|arw|orf|rw2|raf|tga|dds|ico|ppm|pgm|exr|hdr)",
    re.IGNORECASE,
)
"""Endings of pictures in formats that are not read."""
SHOWN = 5
_NAME_BYTES = 100  # two of them and a number are a file name, which most disks bound at 255


@dataclass(frozen=True)
class PairFiles:
    """Two pictures' files, and the name of what becomes of them: a file name without ending."""

    name: str
    content: Path
    style: Path


@dataclass
class Failures:
    """What could not be used, and why; nothing of it ends the work on the rest."""

    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, what: str, reason: str) -> None:
        """Note that `what`, a file or a line, is of no use."""
        self.reasons[printable(what)] = printable(reason)

    def lines(self, record: Path) -> list[str]:
        """For the console: how many, the first few, and that all of them are in the file `record`."""
        if not self.reasons:
            return []
        shown = [f"  {reason}" for reason in list(self.reasons.values())[:SHOWN]]
        more = [f"  and {len(self.reasons) - SHOWN} more"] if len(self.reasons) > SHOWN else []
        return [f"{len(self.reasons)} could not be used (all in {record}):", *shown, *more]

    def write(self, record: Path) -> None:
        """Keep all in a CSV file with the columns what and reason; without failures it is removed."""
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
    """The files behind a picture's path, a folder (all pictures in it), a .txt list, or a pattern.

    Pictures of a folder in formats that are not read are noted in `failures`. UserError if there is none.
    """
    files: list[Path] = []
    for path in expand_braces([source]):
        if os.path.isdir(path):  # of a path that no file system takes, pathlib would raise an error
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
    """The pictures of a folder, in order of name; those in formats that are not read are noted in `failures`.

    UserError if the folder has none that can be read.
    """
    try:
        there = sorted(file for file in folder.iterdir() if not file.name.startswith(".") and not file.is_dir())
    except OSError as error:
        raise UserError(f"folder {printable(folder)} cannot be read ({error.strerror}): check its permissions") from error
    for file in (unread := [file for file in there if UNREADABLE.fullmatch(file.suffix)]):
        failures.add(str(file), f"{file}: {file.suffix} files are not read; convert it to JPEG or PNG")
    files = [file for file in there if file.suffix.lower() in PICTURES]
    if not files:
        others = f", and the {len(unread)} such as {unread[0].name} are not read" if unread else ""
        raise UserError(f"no picture in {printable(folder)}: it needs files that end in {' '.join(PICTURES)}{others}")
    return files


def _listed(table: Path) -> list[Path]:
    """The files that a text names, one a line, relative to it; their names may have bytes that are not UTF-8."""
    try:
        text = table.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"{printable(table)} cannot be read ({error.strerror}): give a text file") from error
    if "\0" in text:
        raise UserError(f"{printable(table)} is no list of files in UTF-8: save it as text in UTF-8")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{printable(table)} lists no picture: write the path of one on each line")
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
    """{name: file}: the stem where only one file has it, else with the ending, else with a number.

    The names can be those of new files: see `safe_name` and `shortened`.
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
    """The pairs of a CSV file with the columns content, style and, if wanted, name; paths are relative to the file.

    Lines of no use are noted in `failures`. UserError if the file is not such a table, or is empty.
    """
    pairs: dict[str, PairFiles] = {}
    for line, row in _rows(table):
        where = f"{table} line {line}"
        content, style, name = ((row.get(column) or "").strip() for column in ("content", "style", "name"))
        # Those of os.path, since pathlib's raise errors for users that do not exist and for names that are too long.
        files = [table.parent / os.path.expanduser(path) for path in (content, style)]
        given = zip((content, style), files, strict=True)
        missing = [clipped(file) for cell, file in given if cell and not os.path.isfile(file)]
        if not content or not style:
            failures.add(where, f"{where}: {'style' if content else 'content'} is empty")
        elif missing:
            failures.add(where, f"{where}: {' and '.join(missing)} does not exist")
        elif name != shortened(safe_name(name), 2 * _NAME_BYTES):
            failures.add(where, f"{where}: {clipped(name)!r} is no file name of at most {2 * _NAME_BYTES} bytes")
        elif name in pairs:
            failures.add(where, f"{where}: the name {name} is taken by an earlier line")
        else:
            if not name:
                name = _free(f"{_short(files[0].stem)}__{_short(files[1].stem)}", pairs)
            pairs[name] = PairFiles(name, *files)
    return list(pairs.values())


def _rows(table: Path) -> list[tuple[int, dict[str, str | None]]]:
    """The rows with the numbers of their lines."""
    try:
        # utf-8-sig: spreadsheets begin their files with a mark.
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = [column.strip() for column in reader.fieldnames or []]
            reader.fieldnames = columns
            rows = [(reader.line_num, row) for row in reader]
    except UnicodeDecodeError as error:
        raise UserError(f"--pairs {table} is not UTF-8 text (byte {error.start}): save it as CSV in UTF-8") from error
    except csv.Error as error:
        raise UserError(f"--pairs {table} is no CSV file ({error}): save it as CSV in UTF-8") from error
    except OSError as error:
        raise UserError(f"--pairs {table} cannot be read ({error.strerror}): give a CSV file") from error
    if absent := [column for column in ("content", "style") if column not in columns]:
        first = ",".join(columns) or "nothing"
        raise UserError(f"--pairs {table} has no column {' and '.join(absent)}: its first line is {first[:100]!r}")
    if not rows:
        raise UserError(f"--pairs {table} has no pairs: it ends after the line of column names")
    return rows

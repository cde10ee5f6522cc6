"""Parse and format numbers with units, and align columns."""

from __future__ import annotations

import re
from collections.abc import Sequence

from stylevar.errors import UserError

_UNITS = {"GiB": 1 << 30, "MiB": 1 << 20, "GB": 10**9, "MB": 10**6}


def table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A table with columns of minimal width: the first `text_columns` aligned left, the others right."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def aligned(line: Sequence[str]) -> str:
        cells = (
            cell.ljust(width) if i < text_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        return "  " + "  ".join(cells).rstrip()

    return "\n".join(map(aligned, lines))


def size(count: float) -> str:
    """Bytes, in powers of 1000."""
    return _scaled(count, ("B", "kB", "MB", "GB", "TB"))


def parse_size(text: str) -> int:
    """Bytes of a positive number with a unit, as in "22GiB". UserError for anything else."""
    match = re.fullmatch(rf"(\d+(?:\.\d+)?) ?({'|'.join(_UNITS)})", text)
    if match is None or float(match[1]) == 0:
        raise UserError(f"--memory-budget {text}: give a positive number with a unit ({', '.join(_UNITS)}), as in 22GiB")
    return int(float(match[1]) * _UNITS[match[2]])


def operations(count: float) -> str:
    """FLOPs."""
    return _scaled(count, ("", "k", "M", "G", "T", "P", "E"))


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:.3g} h"


def share(fraction: float) -> str:
    """A percentage."""
    return f"{fraction:.0%}"


def _scaled(count: float, units: Sequence[str]) -> str:
    power = 0
    while count >= 999.5 and power + 1 < len(units):
        count /= 1000
        power += 1
    return f"{count:.3g} {units[power]}".rstrip()

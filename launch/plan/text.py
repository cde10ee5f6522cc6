"""Numbers with units and aligned columns, for reading."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """Columns as wide as they need to be: the first `text_columns` to the left, the others to the right."""
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

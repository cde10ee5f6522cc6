"""Expand a user's file arguments: literal paths, patterns with braces and wildcards, and folders of shards."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

import braceexpand

from stylevar.errors import UserError


def expand_braces(patterns: Sequence[str | Path]) -> list[Path]:
    """Expand the braces in `patterns`, in order, like WebDataset: `train-{00000..00003}.tar`.

    A path that exists is taken literally, whatever characters it contains, and so is a leading folder. A leading `~` is
    the home folder.
    """
    paths: list[Path] = []
    for pattern in patterns:
        folder, rest = _existing_part(Path(pattern))
        if folder == Path() and rest is not None:
            folder, rest = _existing_part(Path(os.path.expanduser(pattern)))
        paths += [folder] if rest is None else [folder / word for word in _alternatives(rest)]
    return paths


def find_paths(pattern: Path) -> list[Path]:
    """The existing paths that match `pattern`, sorted; `*`, `?`, `[...]` and `**` are wildcards.

    A path that exists is taken literally, and so is a leading folder: `data [v1]/*.tar` looks in `data [v1]`.
    """
    folder, rest = _existing_part(pattern)
    if rest is None:
        return [folder]
    return sorted(Path(match) for match in glob.glob(os.path.join(glob.escape(str(folder)), rest), recursive=True))


def expand_shards(patterns: str | Path | Sequence[str | Path]) -> list[Path]:
    """Expand shards, patterns, and folders (all shards in them) to a sorted list of distinct files.

    Accepts one pattern or a sequence. UserError for a pattern without a match.
    """
    distinct: dict[str, Path] = {}
    for pattern in expand_braces([patterns] if isinstance(patterns, (str, Path)) else patterns):
        shards = [shard for path in find_paths(pattern) for shard in _shards_at(path)]
        if not shards:
            raise UserError(f"no shard matches {str(pattern)!r}: check the path, or make shards with launch/prepare.py")
        for shard in shards:
            distinct.setdefault(os.path.realpath(shard), shard)  # one file may be named in two ways
    return sorted(distinct.values())


def _shards_at(path: Path) -> list[Path]:
    """A shard itself, or the shards in a folder except hidden files."""
    if not path.is_dir():
        return [path]
    return [shard for shard in path.iterdir() if shard.suffix == ".tar" and not shard.name.startswith(".")]


def _existing_part(path: Path) -> tuple[Path, str | None]:
    """The longest leading part of `path` that exists, and the rest, which is None if all of it exists."""
    # os.path, because pathlib raises an error for a name that is too long.
    folder = next((part for part in (path, *path.parents) if os.path.lexists(part)), Path())
    return folder, None if folder == path else str(path.relative_to(folder))


def _alternatives(pattern: str) -> list[str]:
    try:
        return list(braceexpand.braceexpand(pattern, escape=False))
    except ValueError:
        return [pattern]  # a single brace, which shells also take literally

"""Plain folders: `{content,style,target}/NAME.ext`, or one folder per triplet `NAME/{content,style,target}.ext`."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from data.convert.archive import list_files
from data.convert.source import Block, Picture, Piece, RawTriplet, Reject, in_blocks
from data.shard_writer import ROLES
from stylevar.errors import UserError


def blocks(source: Path, size: int, dataset: str = "folder") -> list[Block]:
    """The folder's triplets in blocks of `size`, by name."""
    if not source.is_dir():
        raise UserError(f"{source} is not a folder: give one with content/, style/ and target/, or one folder per triplet")
    triplets: dict[str, dict[str, Picture]] = {}
    rejects: list[RawTriplet | Reject] = []
    for path, piece in list_files(source).items():
        folder, stem = PurePosixPath(path).parent, PurePosixPath(path).stem
        if stem in ROLES:
            name, role = folder.as_posix(), stem
        elif folder.parts and folder.parts[0] in ROLES:
            role = folder.parts[0]
            name = PurePosixPath(path).relative_to(role).with_suffix("").as_posix()
        else:
            continue
        if triplets.setdefault(name, {}).setdefault(role, Picture(path, piece)).name != path:
            rejects.append(Reject(path, "same name twice", f"{name} has another {role}"))
    if not triplets:
        raise UserError(f"{source} has neither content/, style/ and target/, nor folders with a file for each")
    items = [_triplet(name, triplets[name]) for name in sorted(triplets)]
    return in_blocks(dataset, [*rejects, *items], size)


def _triplet(name: str, pictures: dict[str, Picture]) -> RawTriplet | Reject:
    missing = [role for role in ROLES if role not in pictures]
    if missing:
        return Reject(name, f"missing {missing[0]}", f"no {' and no '.join(missing)} of that name")
    return RawTriplet(pictures["content"], pictures["style"], pictures["target"])


def pair_blocks(contents: Path, styles: Path, count: int, seed: int, size: int, dataset: str = "pairs") -> list[Block]:
    """`count` different (content, style) conditions without a target, drawn uniformly from all combinations."""
    pieces: list[dict[str, Piece]] = []
    for folder in (contents, styles):
        if not folder.is_dir() or not (files := list_files(folder)):
            raise UserError(f"{folder} is not a folder with pictures")
        pieces.append(files)
    total = len(pieces[0]) * len(pieces[1])
    if not 1 <= count <= total:
        raise UserError(f"--count {count}: must be from 1 to {total}, the number of combinations")
    rng = np.random.Generator(np.random.PCG64(seed))
    chosen = sorted(rng.choice(total, count, replace=False).tolist())
    names = [list(files) for files in pieces]
    items: list[RawTriplet | Reject] = []
    for number in chosen:
        content, style = names[0][number // len(names[1])], names[1][number % len(names[1])]
        items.append(RawTriplet(Picture(content, pieces[0][content]), Picture(style, pieces[1][style]), None))
    return in_blocks(dataset, items, size)

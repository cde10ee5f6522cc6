"""List the files in folders and uncompressed tars as pieces, without extracting anything."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO, cast

from data.convert.source import JoinedReader, Piece, Reject
from data.shard_writer import TAR_BLOCK, padded
from data.tar_headers import SmallHeaders, TooManyMembers, check_number, members
from stylevar.errors import UserError

MACOS_FOLDER = "__MACOSX"
LITTER = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")


def check_end(block: bytes) -> None:
    """Raise ReadError unless the `block` after an archive's last member is all zeros.

    tarfile treats a damaged header, or a truncation between two members, as the end.
    """
    if block != bytes(TAR_BLOCK):
        raise tarfile.ReadError("no end mark")


def safe_name(member: tarfile.TarInfo) -> str | None:
    """The member's name if it is a regular file below the archive's root, else None."""
    path = PurePosixPath(member.name)
    inside = member.isfile() and not path.is_absolute() and ".." not in path.parts and path.name
    return str(path) if inside else None


def is_litter(name: str) -> bool:
    """Whether a member or file is desktop litter: hidden files, the `._` files of macOS, thumbnails."""
    path = PurePosixPath(name)
    return path.name.startswith(".") or path.name.lower() in LITTER or MACOS_FOLDER in path.parts


def list_files(folder: Path) -> dict[str, Piece]:
    """{path within `folder`: piece} of all files but litter, sorted by name; follows links to folders."""
    paths = []
    for at, folders, files in os.walk(folder, followlinks=True):
        above = {os.path.realpath(parent) for parent in (Path(at), *Path(at).parents)}
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(at, name)) not in above]  # no cycles
        paths += [path for path in (Path(at, name) for name in files) if path.is_file()]
    names = {path: path.relative_to(folder).as_posix() for path in sorted(paths)}
    return {name: Piece((path,)) for path, name in names.items() if not is_litter(name)}


def index_tar(paths: tuple[Path, ...]) -> tuple[dict[str, Piece], list[Reject]]:
    """{member name: piece} of a tar, which may be split into several `paths`. Reads only headers.

    Rejects members outside the archive's root, links, devices, repeated names, and everything after a truncation or
    damage. Raises UserError if there are too many members.
    """
    pieces: dict[str, Piece] = {}
    rejects: list[Reject] = []
    label = paths[0].name
    with JoinedReader(paths) as reader:
        end = 0
        try:
            source = cast(IO[bytes], reader)
            check_number(source)
            with tarfile.open(fileobj=source, mode="r:", encoding="utf-8", tarinfo=SmallHeaders) as tar:
                for member in members(tar):
                    end = member.offset_data + padded(member.size)
                    if member.isdir() or is_litter(member.name):
                        continue
                    name = safe_name(member)
                    if name in pieces:
                        rejects.append(Reject(name, "same name twice", f"{label} has an earlier file of that name"))
                    elif name is not None:
                        pieces[name] = Piece(paths, member.offset_data, member.size)
                    else:
                        rejects.append(Reject(member.name, "unsafe member", f"{label}: a link, or a path outside it"))
            reader.seek(end)
            check_end(reader.read(TAR_BLOCK))
        except TooManyMembers as error:
            raise UserError(f"{paths[0]} has {error}: unpack it into a folder") from error
        except (tarfile.TarError, EOFError, OSError) as error:
            rejects.append(Reject(label, "damaged archive", f"cut off or damaged after {len(pieces)} files ({error})"))
    return pieces, rejects


def open_collection(source: Path, *names: str) -> tuple[dict[str, Piece], list[Reject]]:
    """List the files of the first of `names` that `source` has as a folder, NAME.tar, or NAME.tar.part_aa, part_ab ...

    The keys are file names without folders. If two files have the same name, the second is rejected.
    Raises UserError if there is none.
    """
    for name in names:
        parts = tuple(sorted(source.glob(f"{name}.tar.part_*")))
        if (source / name).is_dir():
            pieces = list_files(source / name)
            rejects: list[Reject] = []
        elif (source / f"{name}.tar").is_file():
            pieces, rejects = index_tar((source / f"{name}.tar",))
        elif parts:
            pieces, rejects = index_tar(parts)
        else:
            continue
        by_name: dict[str, Piece] = {}
        for path, piece in pieces.items():
            if by_name.setdefault(PurePosixPath(path).name, piece) is not piece:
                rejects.append(Reject(path, "same name twice", f"{name} has another file of that name"))
        return by_name, rejects
    raise UserError(f"{source} has none of {', '.join(names)}, as a folder, .tar or .tar.part_aa: check the path")

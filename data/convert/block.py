"""Convert one block of a corpus: its triplets as parts of shards, and a table of their positions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from data.convert.config import ConvertConfig, PictureConfig
from data.convert.picture import Prepared, prepare_picture
from data.convert.source import Block, Picture, Piece, RawTriplet, Reject
from data.manifest import REJECT_SCHEMA, SCHEMA, rows_to_table
from data.shard_writer import EncodedTriplet, ShardWriter
from data.triplets import UnusableImage
from stylevar.atomic import file_aside
from stylevar.errors import UserError
from stylevar.text import clipped, printable

FILTERED = "filtered"
"""Kind of reject for triplets excluded by the user's filters; nothing is wrong with them."""
DATASET_LENGTH = 40
"""Longest corpus name in keys, which must fit the 100 characters of a tar header."""
KEPT_PICTURES = 4096
"""Number of prepared pictures that a process caches for triplets with the same content or style: about 150 MB."""


class PictureCache:
    """Prepares pictures, and caches those from files or archives, because other triplets may use them too."""

    def __init__(self, config: PictureConfig) -> None:
        self.config = config
        self._kept: OrderedDict[Piece, Prepared | UnusableImage] = OrderedDict()

    def get(self, picture: Picture, keep: bool) -> Prepared:
        """Raises UnusableImage."""
        piece = picture.data if keep and isinstance(picture.data, Piece) else None
        if piece is None or piece not in self._kept:
            prepared = self._prepare(picture)
            if piece is not None:
                self._kept[piece] = prepared
                if len(self._kept) > KEPT_PICTURES:
                    self._kept.popitem(last=False)
        else:
            prepared = self._kept[piece]
            self._kept.move_to_end(piece)
        if isinstance(prepared, UnusableImage):
            raise prepared
        return prepared

    def _prepare(self, picture: Picture) -> Prepared | UnusableImage:
        try:
            return prepare_picture(picture.read(), self.config)
        except UnusableImage as error:
            return error
        except (OSError, EOFError) as error:
            return UnusableImage("unreadable file", str(error))


def convert_block(
    block: Block, config: ConvertConfig, pictures: PictureCache, parts: Path, tick: Callable[[], object]
) -> tuple[int, int]:
    """Write `parts`/NAME.SPLIT.tar, NAME.rejects.parquet and, last, NAME.parquet, which marks the block as done.

    Returns the numbers of triplets and of rejects, not counting filtered triplets.
    """
    rows: list[dict[str, Any]] = []
    rejects: list[dict[str, str]] = []
    with ExitStack() as stack:
        writers: dict[str, ShardWriter] = {}
        for item in _prepared(block, config, pictures):
            if isinstance(item, Reject):
                name, reason = printable(item.name), printable(item.reason)
                rejects.append({"name": name, "kind": item.kind, "reason": reason, "block": block.name})
            else:
                triplet, row = item
                split = row["split"]
                if split not in writers:
                    writers[split] = stack.enter_context(ShardWriter(parts / f"{block.name}.{split}.tar"))
                for part, (offset, size) in writers[split].add(triplet).items():
                    row |= {f"{part}_offset": offset, f"{part}_size": size}
                rows.append(row | {"shard": f"{block.name}.{split}.tar"})
            tick()
    pq.write_table(rows_to_table(rejects, REJECT_SCHEMA), parts / f"{block.name}.rejects.parquet")
    with file_aside(parts / f"{block.name}.parquet") as aside:
        pq.write_table(rows_to_table(rows, SCHEMA).replace_schema_metadata({"block": block.fingerprint}), aside)
    return len(rows), sum(reject["kind"] != FILTERED for reject in rejects)


def _prepared(
    block: Block, config: ConvertConfig, pictures: PictureCache
) -> Iterator[Reject | tuple[EncodedTriplet, dict[str, Any]]]:
    for number, item in enumerate(block.read()):
        if isinstance(item, Reject):
            yield item
        elif (unwanted := config.filters.refusal(item)) is not None:
            yield Reject(item.name, FILTERED, unwanted)
        else:
            yield _triplet(f"{block.name}-{number:05d}", item, config, pictures)


def _triplet(
    key: str, raw: RawTriplet, config: ConvertConfig, pictures: PictureCache
) -> Reject | tuple[EncodedTriplet, dict[str, Any]]:
    prepared: dict[str, Prepared] = {}
    names: dict[str, str] = {}
    for role, picture in (("content", raw.content), ("style", raw.style), ("target", raw.target)):
        if picture is None:
            continue
        try:
            prepared[role] = pictures.get(picture, keep=role != "target")
        except UnusableImage as error:
            return Reject(raw.name, error.kind, f"{role} {picture.name}: {error}")
        names[f"{role}_name"] = printable(picture.name)
    ids = {f"{role}_id": picture.id for role, picture in prepared.items()}
    known = {
        "dataset": config.dataset,
        "split": config.split.split(ids["content_id"], ids["style_id"]),
        **ids,
        **names,
        "flags": dict(raw.flags),
        "scores": dict(raw.scores),
    }
    jpegs = {role: picture.jpeg for role, picture in prepared.items()}
    triplet = EncodedTriplet(key, jpegs["content"], jpegs["style"], jpegs.get("target"), known)
    return triplet, {"key": key, **known, "flags": list(raw.flags.items()), "scores": list(raw.scores.items())}


def check_dataset(name: str) -> None:
    """UserError unless `name` can be part of keys and file names."""
    if not name or not all(c.isascii() and (c.isalnum() or c in "-_") for c in name):
        raise UserError(f"--dataset {name!r}: only letters, digits, - and _ are allowed in keys")
    if len(name) > DATASET_LENGTH:
        raise UserError(f"--dataset {clipped(name, DATASET_LENGTH)}: keys allow at most {DATASET_LENGTH} characters")

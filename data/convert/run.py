"""Convert a corpus: its blocks in parallel, each saved when it is done, then shards and the manifest."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from data.convert.assemble import assemble
from data.convert.block import FILTERED, PictureCache, convert_block
from data.convert.config import ConvertConfig
from data.convert.source import Block
from data.manifest import MANIFEST, REJECT_SCHEMA, REJECTS
from data.processes import CONTEXT, process_pool
from stylevar.errors import UserError
from stylevar.processes import starting_workers
from stylevar.text import check_path
from stylevar.text_files import read_record

SETTINGS, PARTS = "prepare.json", ".parts"
EARLY = 1000
"""Number of items after which too many rejects stop the conversion early, if the total is unknown."""


@dataclass(frozen=True)
class Summary:
    """The numbers of a prepared set: triplets by split, rejects by kind (with the filtered ones), and shards."""

    splits: dict[str, int]
    rejects: dict[str, int]
    shards: int


def convert(
    blocks: Sequence[Block],
    out: Path,
    config: ConvertConfig,
    source: str,
    workers: int = 1,
    shard_bytes: int = 500_000_000,
    max_reject_share: float = 0.01,
) -> Summary:
    """Write a prepared set to `out`. After an interruption, the same call continues with the first unfinished block.

    The same source and settings give the same bytes, whatever `workers` is. Raises UserError if `out` contains a set
    from another source or with other settings, if more than `max_reject_share` of the items are rejected (finished
    blocks are kept, and all rejects are listed), or if a worker process is killed.
    """
    settings = {"source": source, "shard_bytes": shard_bytes, **asdict(config)}
    _claim(out, settings)
    parts = out / PARTS
    parts.mkdir(exist_ok=True)
    names = {block.name for block in blocks}
    if len(names) < len(blocks):
        raise UserError(f"two archives of {source} would get the same keys: their names must differ before the first dot")
    known = sum(len(block) for block in blocks) if all(len(block) for block in blocks) else None
    tally = _Tally(max_reject_share, out / REJECTS, known)
    todo = []
    for block in blocks:
        done = _done(parts, block)
        if done is None:
            todo.append(block)
        else:
            tally.add(*done)
    try:
        _convert_all(todo, config, parts, workers, tally)
        tally.check(final=True)
    finally:
        kinds = _list_rejects([block.name for block in blocks], parts, out)
    splits, shards = assemble([block.name for block in blocks], parts, out, config.dataset, shard_bytes)
    shutil.rmtree(parts)
    return Summary(splits, kinds, shards)


def _list_rejects(blocks: Sequence[str], parts: Path, out: Path) -> dict[str, int]:
    """Write the rejects of the finished blocks to OUT/rejects.parquet, and count them by kind."""
    files = [parts / f"{name}.rejects.parquet" for name in blocks]
    tables = [pq.read_table(file) for file in files if file.is_file()]
    table = pa.concat_tables([REJECT_SCHEMA.empty_table(), *tables])
    pq.write_table(table, out / REJECTS)
    return dict(Counter(table["kind"].to_pylist()))


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Claim `out` for these settings, or continue in it if it was started with the same ones."""
    check_path(out, "--out", utf8=True)
    file = out / SETTINGS
    wanted = json.loads(json.dumps(settings))
    if file.is_file():
        recorded = read_record(file, f"remove {out} and start again")
        different = [name for name in wanted if recorded.get(name) != wanted[name]]
        if different:
            name = different[0]
            raise UserError(
                f"{out} was prepared with {name} = {recorded.get(name)}, not {wanted[name]}: use the same settings to "
                "continue, or another --out"
            )
        if (out / MANIFEST).is_file():
            raise UserError(f"{out} is prepared already: read it with launch/prepare.py check, or use another --out")
    elif out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty and was not created by launch/prepare.py: use another --out")
    else:
        try:
            out.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(wanted, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"--out {out} cannot be written ({error.strerror}): use another folder") from error


def _done(parts: Path, block: Block) -> tuple[int, int] | None:
    """(triplets, rejects) of a block finished by an earlier run, or None."""
    file = parts / f"{block.name}.parquet"
    if not file.is_file():
        return None
    try:
        metadata = pq.read_schema(file).metadata or {}
        if metadata.get(b"block") != block.fingerprint.encode():
            return None
        kinds = pq.read_table(parts / f"{block.name}.rejects.parquet", columns=["kind"])["kind"].to_pylist()
        return pq.read_metadata(file).num_rows, sum(kind != FILTERED for kind in kinds)
    except (OSError, pa.ArrowException):  # damaged: the block is converted again
        return None


class _Tally:
    """Counts triplets and rejects, and checks the allowed share of rejects; `known` is the number of all items, if known."""

    def __init__(self, allowed: float, listed: Path, known: int | None) -> None:
        self.allowed, self.listed, self.known = allowed, listed, known
        self.triplets = self.rejects = 0

    def add(self, triplets: int, rejects: int) -> None:
        self.triplets += triplets
        self.rejects += rejects

    def check(self, final: bool = False) -> None:
        """Raises UserError if too many items are rejected: at the end, or as soon as it is clear."""
        total = self.triplets + self.rejects
        # The broken members of an archive are listed before everything else: they say nothing about the rest.
        out_of = total if final or self.known is None else self.known
        if (final or total >= EARLY or self.known) and self.rejects > self.allowed * out_of:
            raise UserError(
                f"{self.rejects} of {total} items were rejected, more than --max-reject-share {self.allowed}: see "
                f"{self.listed}; fix the source, or allow a larger share (finished blocks are kept)"
            )
        if final and not self.triplets:
            raise UserError(f"no triplet is left: {self.rejects} items were rejected, the rest filtered; see {self.listed}")


def _convert_all(todo: Sequence[Block], config: ConvertConfig, parts: Path, workers: int, tally: _Tally) -> None:
    """Convert `todo` with a progress bar."""
    bar = tqdm(total=tally.known, initial=tally.triplets + tally.rejects, desc="preparing", unit="triplet", smoothing=0.02)
    with bar:
        if workers == 1:
            pictures = PictureCache(config.picture)
            for block in todo:
                tally.add(*convert_block(block, config, pictures, parts, bar.update))
                tally.check()
            return
        counter = CONTEXT.Value("q", 0)
        with process_pool(min(workers, max(1, len(todo))), _start_worker, config, parts, counter) as pool:
            with starting_workers():
                running = [pool.submit(_work, block) for block in todo]
            for finished in _as_they_finish(running, lambda: _show(bar, counter)):
                tally.add(*finished)
                tally.check()


def _as_they_finish(running: Sequence[Future[tuple[int, int]]], show: Callable[[], None]) -> Iterator[tuple[int, int]]:
    """The results of `running`, the first to finish first; calls `show` at least five times a second."""
    # A queue, because to wait for thousands of futures at once takes time for each of them, each time.
    finished: SimpleQueue[Future[tuple[int, int]]] = SimpleQueue()
    for future in running:
        future.add_done_callback(finished.put)
    left = len(running)
    while left:
        with suppress(Empty):
            result = finished.get(timeout=0.2).result()
            left -= 1
            yield result
        show()


def _show(bar: tqdm, counter: Any) -> None:
    with counter.get_lock():
        bar.update(counter.value)
        counter.value = 0


_worker: tuple[ConvertConfig, PictureCache, Path, Any]


def _start_worker(config: ConvertConfig, parts: Path, counter: Any) -> None:
    global _worker
    _worker = config, PictureCache(config.picture), parts, counter


def _work(block: Block) -> tuple[int, int]:
    config, pictures, parts, counter = _worker
    pending = 0
    shown = time.monotonic()

    def tick() -> None:
        nonlocal pending, shown
        pending += 1
        if time.monotonic() - shown > 0.2:
            flush()

    def flush() -> None:
        nonlocal pending, shown
        with counter.get_lock():
            counter.value += pending
        pending, shown = 0, time.monotonic()

    result = convert_block(block, config, pictures, parts, tick)
    flush()
    return result

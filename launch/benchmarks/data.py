"""Preparing, reading and resuming data, and the parts of an SFT step: `python launch/bench.py data`."""

from __future__ import annotations

import gc
import io
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageOps

from data.config import AugmentConfig, MixtureConfig
from data.convert import omnistyle
from data.convert.config import ConvertConfig, FilterConfig, PictureConfig
from data.convert.run import convert
from data.convert.split import SplitConfig
from data.index import index_triplets
from data.manifest import MANIFEST
from data.mixture import MixtureOrder
from data.patterns import expand_shards
from data.shard_writer import ROLES
from data.shards import ShardFiles, TripletShards
from launch.benchmarks.config import Data
from launch.benchmarks.generated import write_omnistyle
from launch.supervised.data import MicroBatches, load_steps
from learner.supervised.config import SftStepConfig
from learner.supervised.step import SftLearner
from learner.supervised.token_cache import tokenize
from stylevar.build import build_vae_stylevar
from stylevar.contracts import ConditionBatch

BATCH = 16


def run(bench: Data) -> None:
    """Generate a corpus, measure on it, and print a line per result."""
    with _folder(bench.scratch) as folder:
        contents, styles = 20, -(-bench.triplets // 20)
        write_omnistyle(folder / "source", contents, styles, bench.triplets, bench.source_px)
        _prepare(bench, folder)
        _read(bench, folder)
        _memory(bench, folder)
        _resume(bench, folder)
    _step_split()


def _prepare(bench: Data, folder: Path) -> None:
    files = sorted((folder / "source").rglob("*.*"))
    bound = len(files) / _seconds(lambda: _bare(files, bench.size))
    config = ConvertConfig("omnistyle", PictureConfig(size=bench.size), SplitConfig(0, 0, 0), FilterConfig())
    start = time.perf_counter()
    convert(omnistyle.blocks(folder / "source", 100), folder / "set", config, "bench", workers=1)
    rate = len(files) / (time.perf_counter() - start)
    _show("prepare", f"{rate:.1f} pictures/s, bare decode + resize + encode {bound:.1f}/s: {rate / bound:.0%}")


def _read(bench: Data, folder: Path) -> None:
    shards = TripletShards(expand_shards([folder / "set"]), bench.size)
    files = ShardFiles(shards.index.paths)
    places = [(s, *p) for s, row in zip(shards.index.shard, shards.index.places, strict=True) for p in row[:3].tolist()]
    encoded = [files.read(*place) for place in places]

    def bare() -> None:
        for data in encoded:
            np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((bench.size, bench.size)))

    def ours() -> None:
        for i in range(len(shards)):
            shards[i]

    bound, rate = (len(encoded) / min(_seconds(f) for _ in range(3)) for f in (bare, ours))
    _show("read", f"{rate:.0f} pictures/s, bare JPEG decode + resize {bound:.0f}/s: {rate / bound:.0%}")


def _memory(bench: Data, folder: Path) -> None:
    paths = _many(folder, bench.epoch)
    # In a process of its own, like a loading process of a run.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        rate, seen = pool.submit(_read_epoch, paths, bench.size).result()
    shown = " ".join(f"{mib:.0f}" for mib in seen)
    _show("memory", f"{bench.epoch} triplets at {rate:.0f}/s, RSS in MiB before and along the epoch: {shown}")


def _resume(bench: Data, folder: Path) -> None:
    paths = _many(folder, bench.rows)

    def first(start: int) -> float:
        began = time.perf_counter()
        batches = _batches(TripletShards(paths, bench.size), AugmentConfig())
        next(load_steps(batches, start, start + 1, bench.workers))
        return time.perf_counter() - began

    cold, middle = first(0), first(bench.rows // BATCH // 2)
    _show("resume", f"first batch of {bench.rows} rows after {cold:.1f} s, in the middle of the epoch {middle:.1f} s")


def _read_epoch(paths: list[Path], size: int) -> tuple[float, list[float]]:
    """Triplets per second over an epoch, and this process's RSS in MiB: before opening the shards, then ten times."""
    process = psutil.Process()
    seen = [process.memory_info().rss / 2**20]
    batches = _batches(TripletShards(paths, size), AugmentConfig(augment=False))
    steps = len(batches.train) // BATCH
    start = time.perf_counter()
    for number in range(steps):
        batches[number]
        if number % max(1, steps // 10) == 0:
            gc.collect()
            seen.append(process.memory_info().rss / 2**20)
    return steps * BATCH / (time.perf_counter() - start), seen


def _batches(shards: TripletShards, config: AugmentConfig) -> MicroBatches:
    rows = {"omnistyle": np.arange(len(shards))}
    order = MixtureOrder(rows, MixtureConfig(), 0, len(shards) // BATCH, BATCH)
    return MicroBatches(shards, order, config, BATCH, 0, 1)


def _many(folder: Path, count: int) -> list[Path]:
    """Shards with a manifest of `count` rows, made by repeating those of the prepared set."""
    out = Path(tempfile.mkdtemp(prefix=f"many-{count}-", dir=folder))
    table = pq.read_table(folder / "set" / MANIFEST)
    repeated = table.take(pa.array(np.arange(count) % len(table)))
    keys = pa.array([f"omnistyle-{i // 100:05d}-{i % 100:05d}" for i in range(count)])
    pq.write_table(repeated.set_column(0, "key", keys), out / MANIFEST)
    for shard in (folder / "set").glob("*.tar"):
        os.link(shard, out / shard.name)
    return list(index_triplets(expand_shards([out])).paths)


def _bare(files: list[Path], size: int) -> None:
    """The work that preparing cannot avoid: decode, resize, encode."""
    for file in files:
        image = ImageOps.fit(Image.open(file).convert("RGB"), (size, size), Image.Resampling.LANCZOS)
        image.save(io.BytesIO(), "JPEG", quality=95, subsampling=0)


def _step_split() -> None:
    """Shares of tokenising, forward and backward in one SFT step of a small model at 80 px."""
    shape: dict[str, Any] = {"patch_nums": (1, 2, 4, 7, 10), "V": 1024, "Cvae": 16, "ch": 32, "ch_mult": (1, 1, 2, 4)}
    _, model = build_vae_stylevar(**shape, depth=4, style_enc_dim=128)
    learner = SftLearner(model, SftStepConfig())
    images = torch.randint(0, 256, (3, BATCH, 3, 80, 80), dtype=torch.uint8)
    batch = ConditionBatch(tuple(map(str, range(BATCH))), *images)
    learner.step([batch], 1e-6, 0)
    whole = min(_seconds(lambda: learner.step([batch], 1e-6, 0)) for _ in range(3))
    tokens = min(_seconds(lambda: tokenize(model.vae, torch.cat([*images]))) for _ in range(3))
    forward = min(_seconds(lambda: learner.validate(batch)) for _ in range(3)) - tokens
    parts = {"tokenising": tokens, "forward": forward, "backward and update": whole - tokens - forward}
    shares = ", ".join(f"{name} {seconds / whole:.0%}" for name, seconds in parts.items())
    _show("step", f"{whole:.2f} s for {BATCH} triplets of {', '.join(ROLES)}: {shares}")


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _show(name: str, result: str) -> None:
    print(f"{name:8} {result}", flush=True)


@contextmanager
def _folder(wanted: Path | None) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="stylevar-bench-", dir=wanted))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)

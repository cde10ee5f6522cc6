"""Stylise files of pictures batch by batch, from the flags of `launch/infer.py` to files of results."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from launch.run.newest_run import RUNS
from launch.run.run_folder import first_free
from launch.stylise.best_of import best
from launch.stylise.config import InferConfig
from launch.stylise.loading import Batch, PictureReader, ahead
from launch.stylise.pictures import PICTURES, Failures, PairFiles, all_pairs, find_pictures, read_pairs
from launch.stylise.pretrained import load_pipeline
from launch.stylise.results import Results, plan_results
from launch.stylise.session import example_photos, example_styles
from reward.scorer import build_scorer
from stylevar.allocator import keep_freed_memory
from stylevar.contracts import References
from stylevar.errors import UserError
from stylevar.pictures import from_u8, restored
from stylevar.pipeline import StyleVARPipeline
from stylevar.text import printable

USUAL = RUNS / "infer"
"""Default folder of the results."""
DEMO_PICTURES = 4
"""How many of the demo's photographs and styles to use if no pictures are given."""


class Stylist:
    """Draws the results batch by batch and saves them."""

    def __init__(self, config: InferConfig, pipeline: StyleVARPipeline, results: Results) -> None:
        self.config, self.pipeline, self.results = config, pipeline, results
        self.scorer = build_scorer(config.reward, pipeline.model.device) if config.best_of else None

    def work(self, batch: Batch) -> None:
        """Draw, select, restore and save the results of a batch. UserError if memory or disk space runs out."""
        config = self.config
        contents, styles = batch.stacked()
        drawn = max(config.best_of, config.sampling.num_samples)
        sampling = dataclasses.replace(config.sampling, num_samples=drawn)
        names = [pair.name for pair in batch.pairs]
        try:
            images_u8 = self.pipeline.sample(contents, styles, names, sampling, config.batch)
        except torch.OutOfMemoryError as error:
            raise UserError(f"--batch {config.batch} is too much for this GPU's memory: give a smaller one") from error
        rewards = None
        if self.scorer is not None:
            scores = self.scorer.score(images_u8, References(content=contents, style=styles))
            images_u8, rewards = best(images_u8, scores.rewards, config.sampling.num_samples)
        for row, pair in enumerate(batch.pairs):
            pictures = [restored(from_u8(image), pair.content.size, config.fit, config.restore) for image in images_u8[row]]
            self.results.keep(pair, pictures, None if rewards is None else rewards[row])


def find_pairs(config: InferConfig, out: Path, failures: Failures) -> list[PairFiles]:
    """The pairs to stylise. UserError if there are none."""
    if config.pairs is None and not config.content:
        return demo_pairs(out)
    if config.pairs is None:
        return all_pairs(find_pictures(config.content, failures), find_pictures(config.style, failures))
    return read_pairs(config.pairs, failures)


def demo_pairs(out: Path) -> list[PairFiles]:
    """A few of the demo's photographs, each in a few of its styles. Unpacks the styles into the folder of the results."""
    print("no pictures are given: using a few of the demo's; for yours, give --content photo.jpg --style painting.jpg")
    folder = out / "styles"
    if out.suffix.lower() in PICTURES:
        raise UserError(f"--out {out}: give a folder for the results of the demo's pictures")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        styles = example_styles(folder, DEMO_PICTURES)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}): choose another folder") from error
    return all_pairs([Path(photo) for photo in example_photos()[:DEMO_PICTURES]], [Path(style) for style in styles])


def stylise_all(stylist: Stylist, pairs: Sequence[PairFiles], reader: PictureReader) -> bool:
    """Stylise all pairs. Returns False if Ctrl-C interrupted it."""
    samples, batch = stylist.config.sampling.num_samples, stylist.config.batch
    at_once = max(1, batch // max(samples, stylist.config.best_of))
    expected = len(pairs) * samples
    with tqdm(total=expected, unit="image") as bar:
        try:
            for part in ahead(reader.batches(pairs, at_once)):
                expected -= part.lost * samples
                bar.total = expected
                if part.pairs:
                    stylist.work(part)
                bar.update(len(part.pairs) * samples)
        except KeyboardInterrupt:
            return False
    return True


def stylise(config: InferConfig) -> None:
    """Stylise the pictures that the flags name. UserError if there is no result, KeyboardInterrupt after Ctrl-C."""
    keep_freed_memory()
    failures = Failures()
    goes_on = config.overwrite or config.skip_existing
    out = config.out or (USUAL if goes_on else first_free(USUAL))
    pairs = find_pairs(config, out, failures)
    names = [pair.name for pair in pairs]
    results = plan_results(out, names, config.sampling.num_samples, config.overwrite, config.skip_existing)
    left = [pair for pair in pairs if pair.name in results.files]
    if len(left) < len(pairs):
        print(f"{len(pairs) - len(left)} of {len(pairs)} pairs already have their results")
    finished = True
    if left:
        pipeline = load_pipeline(config.model)
        reader = PictureReader(pipeline.image_size, config.fit, failures)
        finished = stylise_all(Stylist(config, pipeline, results), left, reader)
    results.finish()
    record = results.beside("failed.csv")
    failures.write(record)
    if finished and not results.done and failures.reasons:
        first, *more = failures.reasons.values()
        raise UserError(
            f"nothing could be stylised: {first}" + (f" (and {len(more)} more, all in {record})" if more else "")
        )
    for line in failures.lines(record):
        print(line, file=sys.stderr)
    if not finished:
        print(f"{results.said} kept in {results.folder}: continue with --out {out} --skip-existing", file=sys.stderr)
        raise KeyboardInterrupt
    if results.done:
        print(printable(f"{results.said} in {results.folder}, side by side in {results.grid}"))

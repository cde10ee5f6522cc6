"""Stylise pictures: every content picture in the style of every style picture, or the pairs of a table.

python launch/infer.py                  # a few of the demo's pictures
python launch/infer.py --content photo.jpg --style painting.jpg --out stylised.png
python launch/infer.py --content photos/ --style 'paintings/*.jpg' --out stylised/ --fit pad
python launch/infer.py --pairs pairs.csv --out stylised/ --best-of 8

Unusable pictures are skipped and listed at the end. The exit code is 0 if there are results, 2 if there are none, and 130
after Ctrl-C. Finished results are kept, and --skip-existing continues from there.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import tyro
from annotated_types import Ge
from tqdm import tqdm

from launch.common import cli
from launch.run.newest_run import RUNS
from launch.run.run_folder import first_free
from launch.stylise.best_of import Judge, ScoreConfig
from launch.stylise.loading import Batch, PictureReader, ahead
from launch.stylise.pictures import PICTURES, Failures, PairFiles, all_pairs, find_pictures, read_pairs
from launch.stylise.pretrained import ModelSource
from launch.stylise.results import Results, plan_results
from stylevar.allocator import keep_freed_memory
from stylevar.bounds import check_bounds
from stylevar.errors import UserError
from stylevar.fit import Fit, Restore
from stylevar.pictures import from_u8, restored
from stylevar.pipeline import StyleVARPipeline
from stylevar.sampling_config import Sampling
from stylevar.text import printable

USUAL = RUNS / "infer"
"""Default folder of the results."""
DEMO_PICTURES = 4
"""How many of the demo's photographs and styles to use if no pictures are given."""


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class InferConfig:
    out: Path | None = None
    """Folder for CONTENT__STYLE.png and grid.png; or, for a single result, a .png file (its grid is beside it). By default
    runs/infer, or runs/infer-2 and so on if that is taken."""
    content: tuple[Path, ...] = ()
    """Pictures to stylise: files, folders, patterns (quoted or not) and .txt lists of files. Only the first frame of an
    animation is used. Without --content, --style and --pairs, a few of the demo's pictures are used."""
    style: tuple[Path, ...] = ()
    """Style pictures, given in the same way; every content is combined with every style."""
    pairs: Path | None = None
    """Instead of both: a CSV file with the columns content, style and, optionally, name. Paths are relative to the file."""
    fit: Fit = "crop"
    """How pictures are made square. crop: keep the centre; stretch: distort the whole picture; pad: keep the whole content
    and mirror its edges, with the margins cut off the result (styles are cropped)."""
    restore: Restore = "aspect"
    """Shape of results. aspect: the content's aspect ratio at the model's resolution (a square with --fit crop); size: the
    content's own width and height (its centre square with --fit crop), enlarged to at most 64 megapixels; square: as
    the model generates them."""
    best_of: Annotated[int, Ge(0)] = 0
    """Draw this many samples per pair and keep the --num-samples best by --reward; 0 keeps every sample."""
    batch: Annotated[int, Ge(1)] = 8
    """Results to compute at once."""
    overwrite: bool = False
    """Replace results that exist."""
    skip_existing: bool = False
    """Skip pairs whose results exist."""
    sampling: Sampling = field(default_factory=Sampling)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    model: ModelSource = field(default_factory=ModelSource)

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.best_of and self.best_of < self.sampling.num_samples:
            raise UserError(f"--best-of {self.best_of}: must be 0 or at least --num-samples {self.sampling.num_samples}")
        if self.pairs is None and bool(self.content) != bool(self.style):
            given, other = ("content", "style") if self.content else ("style", "content")
            raise UserError(f"--{given} without --{other}: give both, or --pairs with a CSV file")
        if self.pairs is not None and (self.content or self.style):
            raise UserError("--pairs names contents and styles itself: leave out --content and --style")
        if self.overwrite and self.skip_existing:
            raise UserError("--overwrite and --skip-existing exclude each other: give one")


class Stylist:
    """Draws the results batch by batch and saves them."""

    def __init__(self, config: InferConfig, pipeline: StyleVARPipeline, results: Results) -> None:
        self.config, self.pipeline, self.results = config, pipeline, results
        self.judge = Judge(config.score, pipeline.model.device) if config.best_of else None

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
        if self.judge is not None:
            judged = self.judge.score(images_u8, contents, styles)
            images_u8, rewards = judged.best(images_u8, config.sampling.num_samples)
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
    from launch.stylise.session import example_photos, example_styles

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


def main(config: InferConfig) -> None:
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
        pipeline = config.model.load()
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


if __name__ == "__main__":
    cli.run(main, InferConfig)

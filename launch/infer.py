"""Stylise pictures: every content picture in the style of every style picture.

python launch/infer.py --content photo.jpg --style painting.jpg --out stylised.png
python launch/infer.py --content photos/ --style paintings/ --out stylised/
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from data.triplets import load_image_u8, load_rgb, to_u8
from launch import cli
from launch.atomic import file_aside
from launch.defaults import DEMO_MODEL, DEMO_VAE
from launch.device import choose_device
from launch.grids import draw_table
from stylevar.allocator import keep_freed_memory
from stylevar.checkpoint import load_pair
from stylevar.conditions import encode_conditions, guide_queries
from stylevar.errors import UserError
from stylevar.generate import generate
from stylevar.images import pm1_to_u8, u8_to_pm1
from stylevar.policy import Precision
from stylevar.sampling import TrajectoryStreams, Truncation, trajectory_seeds
from stylevar.transformer import StyleVAR

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
GRID_ROWS = 64


@dataclass(frozen=True)
class InferConfig:
    content: Path
    """Picture that is to be stylised, or a folder of them."""
    style: Path
    """Picture in the wanted style, or a folder of them."""
    out: Path
    """Folder for CONTENT__STYLE.png and grid.png; or, for a single result, a .png file (its grid is beside it)."""
    init: str = str(DEMO_MODEL)
    """StyleVAR: a file, a folder, or a hub id owner/name[:file]."""
    vae: str = str(DEMO_VAE)
    """Its VQ-VAE: a file, a folder, or a hub id owner/name[:file]."""
    seed: int = 0
    """Seed; a result depends on it and on the names of its two pictures, not on the other pairs."""
    num_samples: int = 1
    """Results per pair."""
    style_strength: float = 0.0
    """From -1 (more content) to 1 (more style); best with a model trained with --alpha-jitter."""
    top_k: int = 900
    """Only the best K tokens may be drawn; 0 for all."""
    top_p: float = 0.96
    """Only the smallest set of tokens that holds this share may be drawn; 0 for all."""
    temperature: float = 1.0
    """Above 1 for more varied, below for safer results."""
    kv_cache: Literal["exact", "paper"] = "exact"
    """paper reproduces how the released weights were sampled."""
    fit: Literal["crop", "stretch"] = "crop"
    """How pictures become square: their centre is cut out, or all of them is squeezed."""
    batch: int = 8
    """Results that are computed at once."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto takes a GPU if there is one."""
    precision: Precision = "fp32"
    """bf16: blocks multiply and attend in bfloat16, and a GPU decodes in it."""
    compile: bool = False
    """Compile the model first: minutes, worth it for many pictures."""
    overwrite: bool = False
    """Replace results that exist."""

    def __post_init__(self) -> None:
        for name in ("num_samples", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 1")
        if not -1 <= self.style_strength <= 1:
            raise UserError(f"--style-strength {self.style_strength}: must lie in [-1, 1]")
        if self.top_k < 0 or not 0 <= self.top_p <= 1:
            raise UserError(f"--top-k {self.top_k} --top-p {self.top_p}: must be at least 0, and in [0, 1]")
        if self.temperature <= 0:
            raise UserError(f"--temperature {self.temperature}: must be positive")


@dataclass(frozen=True)
class Pair:
    """Two pictures, uint8 [3, S, S], under the name of their result."""

    name: str
    content: Tensor
    style: Tensor


def named_pictures(source: Path) -> dict[str, Path]:
    """{name: file} of a picture, or of all pictures in a folder, by name. UserError if there is none."""
    if source.is_dir():
        files = sorted(f for f in source.iterdir() if f.suffix.lower() in PICTURES and not f.name.startswith("."))
        if not files:
            raise UserError(f"no picture in {source}: it needs files that end in {' '.join(PICTURES)}")
    elif source.exists():
        files = [source]
    else:
        raise UserError(f"{source} does not exist: give a picture or a folder of pictures")
    stems = Counter(f.stem for f in files)
    return {f.stem if stems[f.stem] == 1 else f.name.replace(".", "_"): f for f in files}


def output_files(config: InferConfig, pairs: Sequence[str]) -> tuple[dict[str, list[Path]], Path]:
    """{pair: its result files} and the grid's file. UserError if one exists already, or one file is to hold many results."""
    n = config.num_samples
    if config.out.suffix.lower() in PICTURES and not config.out.is_dir():
        if config.out.suffix.lower() != ".png" or len(pairs) * n > 1:
            raise UserError(f"--out {config.out}: give a folder for {len(pairs) * n} results, or a .png file for one")
        files, grid = {pairs[0]: [config.out]}, config.out.with_name(f"{config.out.stem}_grid.png")
    else:
        numbers = [""] if n == 1 else [f"__{i}" for i in range(n)]
        files = {pair: [config.out / f"{pair}{number}.png" for number in numbers] for pair in pairs}
        grid = config.out / "grid.png"
    existing = [path for path in (*(p for paths in files.values() for p in paths), grid) if path.exists()]
    if existing and not config.overwrite:
        raise UserError(f"{existing[0]} exists: choose another --out, or replace what is there with --overwrite")
    try:
        grid.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {config.out} cannot be written ({error.strerror}): choose another place") from error
    return files, grid


def load_pictures(files: dict[str, Path], size: int, fit: str, bad: list[str]) -> dict[str, Tensor]:
    """{name: uint8 [3, size, size]} of the files that can be read; the errors of the others are added to `bad`."""
    pictures = {}
    for name, path in files.items():
        try:
            if fit == "crop":
                pictures[name] = load_image_u8(path, size)
            else:
                pictures[name] = to_u8(load_rgb(path).resize((size, size), Image.Resampling.LANCZOS))
        except UserError as error:
            bad.append(str(error))
    return pictures


@torch.no_grad()
def stylise(model: StyleVAR, pairs: Sequence[Pair], config: InferConfig) -> Tensor:
    """Results uint8 [B, num_samples, 3, S, S] on CPU; each has a random stream of its own, named by its pair."""
    content, style = (
        u8_to_pm1(torch.stack(images).to(model.device)) for images in ([p.content for p in pairs], [p.style for p in pairs])
    )
    state = encode_conditions(model, style, content)
    seeds = trajectory_seeds(config.seed, 0, tuple(p.name for p in pairs), config.num_samples)
    result = generate(
        model,
        state,
        guide_queries(model, state),
        group=config.num_samples,
        stream=TrajectoryStreams(seeds, model.arch.tokens, model.device),
        truncation=Truncation(config.top_k, config.top_p),
        temperature=config.temperature,
        alphas=model.alphas(config.style_strength),
        kv_cache=config.kv_cache,
    )
    return pm1_to_u8(model.vae.fhat_to_img(result.f_hat)).unflatten(0, tuple(seeds.shape)).cpu()


def save_png(image_u8: Tensor, path: Path) -> None:
    """Write uint8 [3, H, W] as PNG, whole or not at all. UserError if the place cannot be written."""
    try:
        with file_aside(path) as aside:
            Image.fromarray(image_u8.permute(1, 2, 0).numpy()).save(aside, format="PNG")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}): choose another --out") from error


def batches(pairs: Sequence[Pair], size: int) -> Iterator[Sequence[Pair]]:
    """The pairs in groups of at most `size`."""
    for start in range(0, len(pairs), size):
        yield pairs[start : start + size]


def main(config: InferConfig) -> None:
    keep_freed_memory()
    contents, styles = named_pictures(config.content), named_pictures(config.style)
    files, grid_file = output_files(config, [f"{c}__{s}" for c in contents for s in styles])
    vae, model = load_pair(config.init, config.vae)
    device = choose_device(config.device)
    vae.to(device)
    model.to(device)
    if config.precision == "bf16":
        model.hold_in(torch.bfloat16)
        vae.decode_in_bf16 = device.type == "cuda"
    if config.compile:
        model.compile_blocks()
    bad: list[str] = []
    size = model.arch.image_size
    content_u8, style_u8 = (load_pictures(named, size, config.fit, bad) for named in (contents, styles))
    pairs = [Pair(f"{c}__{s}", content_u8[c], style_u8[s]) for c in content_u8 for s in style_u8]
    if not pairs:
        raise UserError(f"nothing could be stylised: {bad[0]}" + (f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""))
    rows: list[list[Tensor]] = []
    with tqdm(total=len(pairs) * config.num_samples, unit="image") as bar:
        for part in batches(pairs, max(1, config.batch // config.num_samples)):
            for pair, images in zip(part, stylise(model, part, config), strict=True):
                for image, path in zip(images, files[pair.name], strict=True):
                    save_png(image, path)
                if len(rows) < GRID_ROWS:
                    rows.append([pair.content, pair.style, *images])
                bar.update(config.num_samples)
    results = ["result"] if config.num_samples == 1 else [f"result {i}" for i in range(config.num_samples)]
    save_png(draw_table(rows, ["content", "style", *results]), grid_file)
    for reason in bad:
        print(f"skipped: {reason}", file=sys.stderr)
    print(f"{len(pairs) * config.num_samples} results are in {grid_file.parent}, side by side in {grid_file}")


if __name__ == "__main__":
    cli.run(main, InferConfig)

"""A model of twelve pixels that trains in milliseconds, its files, and shards of triplets for it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import small_model
import torch
from PIL import Image

from data.shard_writer import EncodedTriplet, write_shard
from stylevar import build_vae_stylevar
from stylevar.checkpoint import save_model, save_vae
from stylevar.transformer import StyleVAR

SIZE = 12
LENGTH = 14
"""L, the tokens of an image."""
ARCH: dict[str, Any] = small_model.SHAPE | {"depth": 1}
SHAPE = ["--depth", "1", "--style-enc-dim", "32", "--patch-nums", "1", "2", "3", "--V", "32", "--Cvae", "8"]
SHAPE += ["--ch", "32", "--ch-mult", "1", "1", "1"]


def build(seed: int = 0) -> StyleVAR:
    """The tiny model with its random tokenizer; L = 14 tokens."""
    torch.manual_seed(seed)
    _, model = build_vae_stylevar(**ARCH)
    return model


def save(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """Write the tiny model and its tokenizer; the two files."""
    model = build(seed)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model.state_dict(), model.arch, folder)
    save_vae(model.vae, folder / "vqvae.safetensors")
    return folder / "model.safetensors", folder / "vqvae.safetensors"


def picture(seed: int, size: int = SIZE) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(seed: int, size: int = SIZE) -> bytes:
    buffer = io.BytesIO()
    picture(seed, size).save(buffer, format="PNG")
    return buffer.getvalue()


def shard(path: Path, count: int, size: int = SIZE, first: int = 0, targets: bool = True) -> Path:
    """A shard of `count` triplets of noise, or of pairs without `targets`."""
    meta = {"dataset": "noise", "content_id": 0, "style_id": 0, "content_name": "c", "style_name": "s"}
    images = ([png(3 * i + role, size) for role in range(3)] for i in range(first, first + count))
    rows = (
        EncodedTriplet(f"t{first + i:03d}", content, style, target if targets else None, meta, "png")
        for i, (content, style, target) in enumerate(images)
    )
    write_shard(path, rows)
    return path

"""Write the VQ tokens of prepared shards beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.index import TripletIndex, index_triplets
from data.patterns import expand_shards
from data.shard_writer import ROLES
from data.shards import ShardFiles
from data.tokens import has_tokens, write_tokens
from data.triplets import UnusableImage, decode_u8
from stylevar.errors import UserError
from stylevar.images import u8_to_pm1
from stylevar.text import check_path
from stylevar.vqvae import VQVAE

BATCH = 32


def tokenize(folder: Path, vae: VQVAE) -> int:
    """Write a token file for each shard in `folder` that has none from this VQ-VAE; returns the number of triplets done.

    After an interruption it continues with the first unfinished shard. UserError if a picture cannot be decoded.
    """
    check_path(folder, "tokenize", utf8=True)
    index, fingerprint = index_triplets(expand_shards([folder])), vae.fingerprint()
    todo = [n for n, path in enumerate(index.paths) if not has_tokens(path, fingerprint)]
    total = int(np.isin(index.shard, todo).sum())
    pictures = _Tokenizer(vae, index)
    with tqdm(total=total, desc="tokenising", unit="triplet") as bar:
        for shard in todo:
            rows = np.flatnonzero(index.shard == shard)
            rows = rows[np.argsort(index.places[rows, 0, 0])]
            parts = []
            for start in range(0, len(rows), BATCH):
                parts.append(pictures(shard, rows[start : start + BATCH]))
                bar.update(len(parts[-1]))
            offsets = torch.from_numpy(index.places[rows, 0, 0].copy())
            write_tokens(index.paths[shard], offsets, torch.cat(parts), fingerprint)
    return total


class _Tokenizer:
    """Computes tokens of triplets. Each content and style is encoded only once, because many triplets share them."""

    def __init__(self, vae: VQVAE, index: TripletIndex) -> None:
        self.vae, self.index, self.files = vae, index, ShardFiles(index.paths)
        self.length = sum(p * p for p in vae.config.patch_nums)
        side = vae.config.image_size
        self.shape = (3, side, side)
        self._known: dict[bytes, Tensor] = {}

    def __call__(self, shard: int, rows: np.ndarray) -> Tensor:
        """int16 [n, 3, L]."""
        result = torch.full((len(rows), len(ROLES), self.length), -1, dtype=torch.int16)
        images: dict[bytes, Tensor] = {}
        wanted: list[tuple[int, int, bytes]] = []
        for n, row in enumerate(rows):
            for role, data in self._encoded(shard, row):
                picture = hashlib.blake2b(data, digest_size=16).digest()
                if picture not in self._known and picture not in images:
                    images[picture] = self._decoded(data, row)
                wanted.append((n, role, picture))
        new = dict(zip(images, self._tokens(list(images.values())), strict=True))
        for n, role, picture in wanted:
            result[n, role] = tokens = new[picture] if picture in new else self._known[picture]
            if ROLES[role] != "target":
                self._known[picture] = tokens.clone()  # not a view, which would keep the whole batch in memory
        return result

    def _encoded(self, shard: int, row: int) -> Iterator[tuple[int, bytes]]:
        for role in range(len(ROLES)):
            offset, size = self.index.places[row, role].tolist()
            if offset >= 0:
                yield role, self.files.read(shard, offset, size)

    def _decoded(self, data: bytes, row: int) -> Tensor:
        key = self.index.keys[row].decode()
        try:
            image = decode_u8(data)
        except UnusableImage as error:
            raise UserError(f"{key} has a picture that cannot be used ({error}): see launch/prepare.py check") from error
        if image.shape != self.shape:
            raise UserError(
                f"{key} is {image.shape[2]}x{image.shape[1]}, this VQ-VAE needs {self.shape[2]}x{self.shape[1]}: give the "
                "--patch-nums of your model, or prepare the set with its --size"
            )
        return image

    def _tokens(self, images: list[Tensor]) -> Tensor:
        if not images:
            return torch.empty(0, self.length, dtype=torch.int16)
        device = self.vae.quantize.embedding.weight.device
        maps = [
            self.vae.img_to_idxBl(u8_to_pm1(torch.stack(images[i : i + BATCH]).to(device)))
            for i in range(0, len(images), BATCH)
        ]
        return torch.cat([torch.cat(scales, dim=1) for scales in maps]).to("cpu", torch.int16)

"""A cache for the VQ tokens of images that occur repeatedly."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from stylevar.images import u8_to_pm1
from stylevar.vqvae import VQVAE


class TokenCache:
    """Caches VQ tokens in memory by a hash of the pixels, so every augmented image has its own entry.

    New images of a call are tokenised together. Rounding may depend on the batch, so fill the cache in a fixed order
    (`add`) if runs must repeat bit for bit.
    """

    def __init__(self, vae: VQVAE) -> None:
        self.vae = vae
        self._tokens: dict[bytes, Tensor] = {}

    def __len__(self) -> int:
        return len(self._tokens)

    def load(self, path: Path) -> None:
        """Load tokens written by `save`, if there are any; a damaged file is ignored."""
        try:
            kept = load_file(str(path))
            tokens = dict(zip(map(bytes, kept["images"].numpy()), kept["tokens"], strict=True))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return
        self._tokens.update(tokens)

    def save(self, path: Path) -> None:
        """Write all tokens to `path`. Raises OSError if that fails."""
        images = np.frombuffer(b"".join(self._tokens), dtype=np.uint8).reshape(len(self._tokens), -1)
        tensors = {"images": torch.from_numpy(images.copy()), "tokens": torch.stack(list(self._tokens.values()))}
        save_file(tensors, str(path))

    def add(self, images_u8: Tensor) -> list[bytes]:
        """Tokenise the new images among uint8 [N, 3, H, W]; returns the N cache keys."""
        keys = [hashlib.blake2b(image.numpy(), digest_size=16).digest() for image in images_u8.cpu().contiguous()]
        new = {key: row for row, key in enumerate(keys) if key not in self._tokens}
        if new:
            tokens = torch.cat(tokenize(self.vae, images_u8[list(new.values())]), dim=1).to("cpu", torch.int16)
            self._tokens.update(zip(new, tokens, strict=True))
        return keys

    def rows(self, images_u8: Tensor) -> Tensor:
        """Images uint8 [N, 3, H, W] -> tokens int16 [N, L] on CPU."""
        return torch.stack([self._tokens[key] for key in self.add(images_u8)])

    def __call__(self, images_u8: Tensor) -> list[Tensor]:
        """Images uint8 [N, 3, H, W] -> one int64 [N, p*p] per scale."""
        rows = self.rows(images_u8)
        device = self.vae.quantize.embedding.weight.device
        return list(rows.to(device, torch.int64).split([p * p for p in self.vae.config.patch_nums], dim=1))


def tokenize(vae: VQVAE, images_u8: Tensor) -> list[Tensor]:
    """Images uint8 [N, 3, H, W] -> one int64 [N, p*p] per scale."""
    return vae.img_to_idxBl(u8_to_pm1(images_u8.to(vae.quantize.embedding.weight.device)))

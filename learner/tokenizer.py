"""Training the VQ-VAE itself: the loss of one batch, and the revival of codes that nobody uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stylevar.vqvae import VQVAE

Features = Callable[[Tensor], Sequence[Tensor]]
"""Frozen feature maps of images [N, 3, H, W] in [0, 1], for the perceptual term."""


@dataclass(frozen=True)
class TokenizerLoss:
    """Scalars, and the token maps of the batch (one int64 [B, p*p] per scale)."""

    total: Tensor
    pixels: Tensor
    perceptual: Tensor
    codebook: Tensor
    tokens: list[Tensor]


def feature_distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Mean squared distance between channel-normalised feature maps, averaged over the levels (as in LPIPS)."""
    levels = [
        (F.normalize(a, dim=1, eps=1e-3) - F.normalize(b, dim=1, eps=1e-3)).square().sum(1).mean()
        for a, b in zip(first, second, strict=True)
    ]
    return torch.stack(levels).mean()


def tokenizer_loss(vae: VQVAE, image_pm1: Tensor, features: Features, perceptual_weight: float) -> TokenizerLoss:
    """L1 + perceptual + codebook and commitment loss of a batch [B, 3, H, W] in [-1, 1]."""
    f_hat, codebook, tokens = vae.quantize.straight_through(vae.encode(image_pm1))
    image = vae.decode(f_hat)
    pixels = (image - image_pm1).abs().mean()
    with torch.no_grad():
        wanted = features(image_pm1 * 0.5 + 0.5)
    perceptual = feature_distance(features(image * 0.5 + 0.5), wanted)
    return TokenizerLoss(pixels + perceptual_weight * perceptual + codebook, pixels, perceptual, codebook, tokens)


class CodeRevival:
    """Counts how often each code is used, and moves unused ones onto latents of the current batch."""

    def __init__(self, vocab: int) -> None:
        self.hits = torch.zeros(vocab, dtype=torch.long)

    def count(self, tokens: Sequence[Tensor]) -> None:
        self.hits += torch.bincount(torch.cat([t.flatten() for t in tokens], 0), minlength=len(self.hits))

    @property
    def used_share(self) -> float:
        """Share of the codebook that was used since the last revival."""
        return float((self.hits > 0).float().mean())

    @torch.no_grad()
    def revive(self, vae: VQVAE, image_pm1: Tensor) -> int:
        """Replace codes without a hit by residual latents of `image_pm1`, as the quantizer meets them; returns how many."""
        dead = (self.hits == 0).nonzero().flatten()
        self.hits.zero_()
        rest, met = vae.encode(image_pm1), []
        for s, p in enumerate(vae.quantize.patch_nums):
            met.append(F.interpolate(rest, size=(p, p), mode="area").permute(0, 2, 3, 1).flatten(0, 2))
            rest = rest - vae.quantize.embed(vae.quantize.tokenize_scale(rest, s), s)
        candidates = torch.cat(met)
        chosen = candidates[torch.randint(len(candidates), (len(dead),))]
        vae.quantize.embedding.weight[dead] = chosen
        return len(dead)

"""Train the VQ-VAE itself: one step on a batch of images, and the revival of unused codes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learner.supervised.config import TokenizerStepConfig
from stylevar.images import u8_to_pm1
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


def tokenizer_loss(
    vae: VQVAE, image_pm1: Tensor, features: Features, perceptual_weight: float, bf16: bool = False
) -> TokenizerLoss:
    """L1 + perceptual + codebook and commitment loss of a batch [B, 3, H, W] in [-1, 1].

    `bf16`: the networks compute in bfloat16; the quantizer and the losses stay fp32.
    """

    def cast() -> torch.autocast:
        return torch.autocast(image_pm1.device.type, torch.bfloat16, enabled=bf16)

    with cast():
        latent = vae.encode(image_pm1).float()
    f_hat, codebook, tokens = vae.quantize.straight_through(latent)
    with cast():
        image = vae.decode(f_hat).float()
    pixels = (image - image_pm1).abs().mean()
    with torch.no_grad(), cast():
        wanted = [level.float() for level in features(image_pm1 * 0.5 + 0.5)]
    with cast():
        rebuilt = [level.float() for level in features(image * 0.5 + 0.5)]
    perceptual = feature_distance(rebuilt, wanted)
    return TokenizerLoss(pixels + perceptual_weight * perceptual + codebook, pixels, perceptual, codebook, tokens)


class TokenizerLearner:
    """A VQ-VAE in training, its moving average, and the optimizer."""

    def __init__(self, vae: VQVAE, config: TokenizerStepConfig, features: Features) -> None:
        self.vae, self.config, self.features = vae, config, features
        self.average = copy.deepcopy(vae).requires_grad_(False).eval()
        device = next(vae.parameters()).device
        self.optimizer = torch.optim.AdamW(vae.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=1e-4, fused=True)
        self.revival = CodeRevival(vae.config.V, device)
        self.updates = 0
        if config.compile:  # in place, so that the names of weights do not change
            vae.encoder.compile()
            vae.decoder.compile()

    def step(self, images_u8: Tensor, lr: float) -> TokenizerLoss:
        """One optimizer step on images, uint8 [B, 3, H, W]."""
        config = self.config
        batch = u8_to_pm1(images_u8)
        loss = tokenizer_loss(self.vae, batch, self.features, config.perceptual_weight, config.precision == "bf16")
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
        self.optimizer.step()
        self.updates += 1
        # A new average would be mostly initial weights, so its decay starts small and grows to the configured one.
        keep = min(config.ema, self.updates / (10 + self.updates))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.vae.parameters()), 1 - keep)
        self.revival.count(loss.tokens)
        return loss

    def state(self) -> dict[str, Any]:
        """The state for `load_state`."""
        return {
            "vae": self.vae.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "hits": self.revival.hits,
            "updates": self.updates,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self.vae.load_state_dict(state["vae"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.revival.hits.copy_(state["hits"])
        self.updates = state["updates"]


def mirrored(images_u8: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image of [B, 3, H, W] with probability 1/2, on the generator's device."""
    flip = torch.rand(len(images_u8), generator=generator, device=generator.device) < 0.5
    return torch.where(flip.to(images_u8.device)[:, None, None, None], images_u8.flip(-1), images_u8)


class CodeRevival:
    """Counts how often each code is used, and replaces unused ones by latents of the current batch."""

    def __init__(self, vocab: int, device: torch.device | None = None) -> None:
        self.hits = torch.zeros(vocab, dtype=torch.long, device=device)

    def count(self, tokens: Sequence[Tensor]) -> None:
        self.hits += torch.bincount(torch.cat([t.flatten() for t in tokens], 0), minlength=len(self.hits))

    @property
    def used_share(self) -> float:
        """Share of the codebook that was used since the last revival."""
        return float((self.hits > 0).float().mean())

    @torch.no_grad()
    def revive(self, vae: VQVAE, image_pm1: Tensor) -> int:
        """Replace unused codes by residual latents of `image_pm1`, as the quantizer computes them; returns how many."""
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

"""Flags for the size of a model. The defaults are the published model's; `ModelConfig` checks them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from stylevar.config import PAPER_PATCH_NUMS, ModelConfig, default_alphas


@dataclass(frozen=True)
class VaeShape:
    """Size of the VQ-VAE."""

    patch_nums: tuple[int, ...] = PAPER_PATCH_NUMS
    """Side of the token map of each scale, coarse to fine."""
    V: int = 4096
    """Codebook size."""
    Cvae: int = 32
    """Channels of the latent."""
    ch: int = 160
    """Base channels of the VQ-VAE."""
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Channel multiplier of each VQ-VAE level; every level after the first halves the resolution."""

    def model_config(self, alphas: Sequence[float] | None = None) -> ModelConfig:
        """The full model config, with the published style weights unless `alphas` are given. UserError for a wrong shape."""
        alphas = default_alphas(len(self.patch_nums)) if alphas is None else tuple(alphas)
        return ModelConfig(**asdict(self), alphas=alphas)


@dataclass(frozen=True)
class ModelShape(VaeShape):
    """Size of the model."""

    depth: int = 20
    """Transformer blocks; also the number of heads. The width is 64 * depth."""
    style_enc_dim: int = 512
    """Features of the content and style encoders; 512 is ResNet-18."""


def sides_up_to(last: int, growth: float = 1.3) -> tuple[int, ...]:
    """Sides of token maps from 1 to `last`, each about `growth` times the one before; the published ones for 16."""
    sides = [1]
    while sides[-1] < last:
        following = max(sides[-1] + 1, round(sides[-1] * growth))
        sides.append(last if following * (1 + (growth - 1) / 2) > last else following)
    return tuple(sides)

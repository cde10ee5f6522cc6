"""Models for benchmarks: of any size, with random weights that give every part an effect."""

from __future__ import annotations

import math
from dataclasses import asdict

import torch

from launch.configs.shape import ModelShape
from stylevar.adapters import Adapters
from stylevar.build import build_vae_stylevar
from stylevar.contracts import ConditionBatch
from stylevar.lowrank import factors
from stylevar.released import ReleasedStyleVAR


def build_model(shape: ModelShape, device: torch.device, seed: int = 0) -> ReleasedStyleVAR:
    """A model and, as its `vae`, the tokenizer. Raises UserError for a shape whose parts do not fit together."""
    # The usual initialisation all but silences the residual branches and the head, which would hide mistakes there.
    torch.manual_seed(seed)
    _, model = build_vae_stylevar(device, **asdict(shape), init_adaln_gamma=0.5, init_head=1.0)
    return model.requires_grad_(False)


@torch.no_grad()
def enliven(adapters: Adapters, seed: int = 0) -> None:
    """Give the adapters a random B in place of zeros, so that the policy differs from its reference."""
    generator = torch.Generator().manual_seed(seed)
    for layer in adapters.layers.values():
        lora_b = factors(layer)[1]
        # The adapters then add about a tenth of the weights' own size.
        lora_b.copy_(torch.randn(lora_b.shape, generator=generator).mul_(0.05 / math.sqrt(lora_b.shape[1])))


def random_conditions(count: int, size: int, seed: int) -> ConditionBatch:
    """Conditions of noise. Each seed gives other keys."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (3, count, 3, size, size), dtype=torch.uint8, generator=generator)
    return ConditionBatch(tuple(f"{seed}/{i}" for i in range(count)), *images)

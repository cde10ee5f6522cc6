"""Small models of any shape with lively random weights (the golden rule), and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from golden_model import fill
from torch import Tensor

from stylevar import build_vae_stylevar
from stylevar.adapters import Adapters
from stylevar.contracts import ConditionBatch
from stylevar.lowrank import factors
from stylevar.transformer import StyleVAR

SHAPE: dict[str, Any] = {
    "patch_nums": (1, 2, 3),
    "V": 32,
    "Cvae": 8,
    "ch": 32,
    "ch_mult": (1, 1, 1),
    "depth": 2,
    "style_enc_dim": 32,
}
"""12-pixel images, L = 14 tokens, width 128."""

PAPER_SCALES: dict[str, Any] = {"patch_nums": (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), "V": 64, "ch_mult": (1, 1), "depth": 1}
"""The published ten scales on 32-pixel images, L = 680."""


def build(**changes: Any) -> StyleVAR:
    """The small model with some of `build_vae_stylevar`'s arguments changed; `model.vae` is its tokenizer."""
    vae, model = build_vae_stylevar(**(SHAPE | changes))
    for module in (vae, model):
        state = module.state_dict()
        filled = {key: fill(key, tuple(value.shape)) for key, value in state.items()}
        module.load_state_dict({key: state[key] if value is None else value for key, value in filled.items()})
    return model


def adapt(model: StyleVAR, rank: int = 4, seed: int = 0) -> Adapters:
    """Adapters that have an effect: a random B too."""
    adapters = Adapters(model, rank=rank, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in adapters.layers.values():
            lora_b = factors(layer)[1]
            lora_b.copy_(0.05 * torch.randn(lora_b.shape, generator=generator))
    return adapters


def inputs(model: StyleVAR, count: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random style and content images [B, 3, H, W] in [-1, 1], and tokens int64 [B, L]."""
    generator = torch.Generator().manual_seed(seed)
    size, arch = model.arch.image_size, model.arch
    style, content = torch.rand(2, count, 3, size, size, generator=generator) * 2 - 1
    return style, content, torch.randint(0, arch.V, (count, arch.tokens), generator=generator)


@torch.no_grad()
def logits(model: StyleVAR, count: int = 2, seed: int = 0) -> Tensor:
    """Teacher-forced logits [B, L, V] of `inputs`."""
    style, content, tokens = inputs(model, count, seed)
    return model.teacher_forced_logits([tokens[:, s] for s in model.arch.scale_slices()], style, content)


def batch(model: StyleVAR, count: int = 3, seed: int = 0, prefix: str = "c") -> ConditionBatch:
    """Random conditions with the keys c0, c1, ..."""
    generator = torch.Generator().manual_seed(seed)
    size = model.arch.image_size
    shape = (3, count, 3, size, size)
    content, style, target = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return ConditionBatch(tuple(f"{prefix}{i}" for i in range(count)), content, style, target)

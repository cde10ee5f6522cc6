"""The golden model: weights and images by the rules of tests/golden/README.md, and the stored tensors."""

from __future__ import annotations

import copy
import hashlib
import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from stylevar import build_vae_stylevar
from stylevar.transformer import StyleVAR
from stylevar.vqvae import VQVAE

GOLDEN = Path(__file__).parents[1] / "golden"
UNTOUCHED = ("num_batches_tracked", "zero_k_bias_guide", "zero_k_bias_target", "ema_vocab_hit_SV")


@lru_cache
def tensors() -> dict[str, Tensor]:
    return load_file(str(GOLDEN / "tiny_t.safetensors"))


@lru_cache
def meta() -> dict:
    return json.loads((GOLDEN / "tiny_t.json").read_text())


def fill(key: str, shape: tuple[int, ...]) -> Tensor | None:
    """The value of weight `key`, or None where the rule leaves it untouched."""
    if key.endswith(UNTOUCHED) or key in ("lvl_1L", "attn_bias_for_masking"):
        return None
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    n = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape).astype(np.float32)
    f = np.float32
    if key.endswith("running_var"):
        value = f(1) + f(0.1) * np.abs(n)
    elif key.endswith("running_mean"):
        value = f(0.1) * n
    elif key.endswith("scale_mul_1H11"):
        value = f(np.log(4)) + f(0.1) * n
    elif key == "quantize.embedding.weight":
        value = n
    elif key.endswith(".lora_A"):
        value = n / f(np.sqrt(shape[1]))
    elif key.endswith(".lora_B"):
        value = f(0.05) * n
    elif key.endswith(".weight") and n.ndim == 1:
        value = f(1) + f(0.1) * n
    elif key.endswith(".weight"):
        value = n / f(np.sqrt(np.prod(shape[1:])))
    elif n.ndim == 1:
        value = f(0.05) * n
    else:
        value = f(0.1) * n
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def build() -> tuple[VQVAE, StyleVAR]:
    """A fresh copy of the golden pair."""
    return copy.deepcopy(_built())


@lru_cache
def _built() -> tuple[VQVAE, StyleVAR]:
    vae, model = build_vae_stylevar(patch_nums=(1, 2, 3, 4), V=64, Cvae=8, ch=32, depth=2, alpha_nums=(0.2, 0.4, 0.6, 0.8))
    for module in (vae, model):
        state = module.state_dict()
        filled = {k: fill(k, tuple(v.shape)) for k, v in state.items()}
        module.load_state_dict({k: state[k] if v is None else v for k, v in filled.items()}, strict=True)
    return vae.eval(), model.eval()


def images(kind: int, batch: int = 2, size: int = 64) -> Tensor:
    """Input images [B, 3, S, S] in [-1, 1]; kind 0 is style, 1 content, 2 target."""
    b, c, i, j = np.meshgrid(range(batch), range(3), range(size), range(size), indexing="ij")
    u, v, k = (i + 0.5) / size, (j + 0.5) / size, kind
    waves = 0.6 * np.sin(2 * np.pi * ((1 + k + b) * u + (1 + c) * v) + 0.7 * k + 0.3 * c)
    waves += 0.4 * np.cos(2 * np.pi * ((2 + c) * u - (1 + b) * v) + 0.5 * b + 0.9 * k)
    return torch.from_numpy(waves.astype(np.float32))


def condition_major(rows: Tensor, groups: int = 4) -> Tensor:
    """Golden group tensors are g-major (row g * B + b): [G * B, ...] -> [B, G, ...]."""
    return rows.view(groups, -1, *rows.shape[1:]).transpose(0, 1).contiguous()

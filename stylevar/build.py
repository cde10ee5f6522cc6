"""Build the tokenizer and the transformer with initialised weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from stylevar.config import PAPER_PATCH_NUMS, ModelConfig, default_alphas
from stylevar.released import ReleasedStyleVAR
from stylevar.transformer import StyleVAR
from stylevar.vqvae import VQVAE


def build_vae_stylevar(
    device: torch.device | str = "cpu",
    patch_nums: Sequence[int] = PAPER_PATCH_NUMS,
    V: int = 4096,
    Cvae: int = 32,
    ch: int = 160,
    share_quant_resi: int = 4,
    depth: int = 20,
    shared_aln: bool = False,
    attn_l2_norm: bool = True,
    flash_if_available: bool = True,
    fused_if_available: bool = True,
    init_adaln: float = 0.5,
    init_adaln_gamma: float = 1e-5,
    init_head: float = 0.02,
    init_std: float = -1.0,
    style_enc_dim: int = 512,
    alpha_nums: Sequence[float] | None = None,
    ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
) -> tuple[VQVAE, ReleasedStyleVAR]:
    """The frozen VQ-VAE and the transformer, both in eval mode.

    Args:
        patch_nums ... style_enc_dim, ch_mult: see `ModelConfig`.
        flash_if_available, fused_if_available: accepted for compatibility; torch chooses the attention kernel.
        init_adaln, init_adaln_gamma, init_head: initial scale of the adaLN projection's scale and shift rows, of its
            gamma rows, and of the head.
        init_std: standard deviation of the initial weights; a negative value means sqrt(1 / (3 C)).
        alpha_nums: style weight of each scale; by default the published curve.
    """
    patch_nums = tuple(patch_nums)
    alphas = default_alphas(len(patch_nums)) if alpha_nums is None else tuple(alpha_nums)
    config = ModelConfig(
        patch_nums=patch_nums,
        V=V,
        Cvae=Cvae,
        ch=ch,
        ch_mult=tuple(ch_mult),
        share_quant_resi=share_quant_resi,
        depth=depth,
        shared_aln=shared_aln,
        attn_l2_norm=attn_l2_norm,
        style_enc_dim=style_enc_dim,
        alphas=alphas,
    )
    vae, model = _modules(config, device)
    init_weights(model, init_adaln, init_adaln_gamma, init_head, init_std)
    return vae, model


def build_from_config(config: ModelConfig) -> tuple[VQVAE, ReleasedStyleVAR]:
    """The frozen VQ-VAE and the transformer for `config`, with the default initialisation, in eval mode."""
    vae, model = _modules(config, "cpu")
    init_weights(model)
    return vae, model


def build_shapes(config: ModelConfig) -> tuple[VQVAE, ReleasedStyleVAR]:
    """Like `build_from_config`, but on the meta device, where tensors have no memory and no values."""
    return _modules(config, "meta")


def build_unfilled(config: ModelConfig) -> tuple[VQVAE, ReleasedStyleVAR]:
    """Like `build_from_config`, but with arbitrary values, for `load_state_dict`.

    At the published size, drawing initial weights would take longer than reading a checkpoint.
    """
    vae, model = build_shapes(config)
    model.to_empty(device="cpu").fill_buffers()
    vae.to_empty(device="cpu")
    return vae, model


def _modules(config: ModelConfig, device: torch.device | str) -> tuple[VQVAE, ReleasedStyleVAR]:
    """Both modules; the transformer is not initialised yet."""
    with torch.device(device):
        vae = VQVAE(config)
        model = ReleasedStyleVAR(vae, config)
    return vae.requires_grad_(False).eval(), model.eval()


@torch.no_grad()
def init_weights(
    model: StyleVAR,
    init_adaln: float = 0.5,
    init_adaln_gamma: float = 1e-5,
    init_head: float = 0.02,
    init_std: float = -1.0,
) -> None:
    """Initialise the transformer. The two image encoders keep their weights."""
    width, depth = model.arch.width, model.arch.depth
    std = math.sqrt(1 / width / 3) if init_std < 0 else init_std
    for name, module in model.named_modules():
        if "_encoder" in name:
            continue
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
    for parameter in (model.pos_start, model.pos_1LC):
        nn.init.trunc_normal_(parameter, std=std)
    model.head.weight.mul_(init_head)
    nn.init.zeros_(model.head.bias)
    _projection(model.head_nm.ada_lin).mul_(init_adaln)
    projections = [_projection(model.shared_ada_lin)] if model.arch.shared_aln else []
    for block in model.blocks:
        # Residual branches start smaller in deeper models, because there are more of them.
        block.attn.proj.weight.div_(math.sqrt(2 * depth))
        block.ffn.fc2.weight.div_(math.sqrt(2 * depth))
        if block.shared_aln:
            nn.init.trunc_normal_(block.ada_gss, std=1 / math.sqrt(width))
            block.ada_gss[:, :, :2].mul_(init_adaln_gamma)
            block.ada_gss[:, :, 2:].mul_(init_adaln)
        else:
            projections.append(_projection(block.ada_lin))
    for weight in projections:
        weight[: 2 * width].mul_(init_adaln_gamma)
        weight[2 * width :].mul_(init_adaln)


def _projection(silu_linear: nn.Sequential) -> Tensor:
    """The weight of an adaLN projection."""
    return cast(nn.Linear, silu_linear[1]).weight

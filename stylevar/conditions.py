"""The parts of the forward pass that depend only on the condition, computed once for all of its trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from stylevar.contracts import ConditionBatch
from stylevar.errors import UserError
from stylevar.images import to_device, u8_to_pm1
from stylevar.recompute import recomputed
from stylevar.transformer import StyleVAR, without_autocast


@dataclass(frozen=True)
class ConditionState:
    """The encoded state of B conditions. It does not depend on the adapters, so it stays valid across updates.

    start      [B, 1, C]            the content token that opens the sequence
    guides     [B, 2L, C]           guide tokens, scale by scale: its style tokens, then its content tokens
    adaln      depth x [6, B, 1, 1, C]
    head_adaln [2, B, 1, 1, C]
    """

    start: Tensor
    guides: Tensor
    adaln: list[Tensor]
    head_adaln: Tensor

    def select(self, rows: slice) -> ConditionState:
        """The state of some of the conditions."""
        return ConditionState(
            self.start[rows], self.guides[rows], [a[:, rows] for a in self.adaln], self.head_adaln[:, rows]
        )

    @staticmethod
    def join(parts: Sequence[ConditionState]) -> ConditionState:
        """Concatenate `parts`, in order."""
        if len(parts) == 1:
            return parts[0]
        return ConditionState(
            torch.cat([part.start for part in parts]),
            torch.cat([part.guides for part in parts]),
            [torch.cat(layer, dim=1) for layer in zip(*(part.adaln for part in parts), strict=True)],
            torch.cat([part.head_adaln for part in parts], dim=1),
        )


def encode_conditions(
    model: StyleVAR, style_pm1: Tensor, content_pm1: Tensor, idx_Bl: Sequence[Tensor] | None = None
) -> ConditionState:
    """Compute the encoders, VQ tokens, guide tokens and adaLN vectors of B conditions; images [B, 3, H, W] in [-1, 1].

    `idx_Bl`, one int64 [2B, p*p] per scale, holds the tokens of the style and then the content images, if known.
    """
    size = model.arch.image_size
    for name, image in (("style", style_pm1), ("content", content_pm1)):
        if tuple(image.shape[1:]) != (3, size, size):
            raise ValueError(f"{name} images are {tuple(image.shape)}, this model takes [B, 3, {size}, {size}]")
    batch = style_pm1.shape[0]
    # Some CPU kernels return garbage gradients for small bfloat16 convolutions, and the encoders are cheap.
    with without_autocast(style_pm1):
        cond = model.feat_emb(model.style_encoder(style_pm1).flatten(1))
        start = model.feat_emb(model.content_encoder(content_pm1).flatten(1))
    if idx_Bl is None:
        idx_Bl = model.vae.img_to_idxBl(torch.cat([style_pm1, content_pm1]))
    with torch.no_grad():
        features = model.vae.quantize.guide_features(idx_Bl)
    positions = model.level_positions()
    style, content = (model.word_embed(features) + positions).chunk(2)
    guides = torch.cat([part[:, at] for at in model.arch.scale_slices() for part in (style, content)], dim=1)
    for_blocks = model.shared_ada_lin(cond) if model.arch.shared_aln else cond
    return ConditionState(
        start=(start.unsqueeze(1) + model.pos_start + positions[:, :1]),
        guides=guides,
        adaln=[block.adaln(for_blocks) for block in model.blocks],
        head_adaln=model.head_nm.ada_lin(cond).view(batch, 2, 1, 1, -1).transpose(0, 1),
    )


@torch.no_grad()
def encode_batch(model: StyleVAR, batch: ConditionBatch) -> ConditionState:
    """`encode_conditions` for a `ConditionBatch`, using its tokens if it has them."""
    device = model.device
    style, content = (u8_to_pm1(to_device(image, device)) for image in (batch.style, batch.content))
    if batch.tokens is None:
        return encode_conditions(model, style, content)
    check_tokens(model, batch.tokens[:, :2])
    content_idx, style_idx, _ = batch.tokens.to(device, torch.int64).unbind(1)
    both = torch.cat([style_idx, content_idx])
    return encode_conditions(model, style, content, [both[:, scale] for scale in model.arch.scale_slices()])


def check_tokens(model: StyleVAR, tokens: Tensor) -> None:
    """UserError for tokens read from files, [..., L] on CPU, that the model does not have."""
    arch = model.arch
    low, high = tokens.aminmax()
    if tokens.shape[-1] != arch.tokens or low < 0 or high >= arch.V:
        raise UserError(
            f"stored VQ tokens are damaged: {tokens.shape[-1]} from {low} to {high}, not {arch.tokens} from 0 to "
            f"{arch.V - 1}: write them again with launch/prepare.py tokenize, or remove the token files"
        )


def guide_queries(model: StyleVAR, state: ConditionState) -> list[Tensor]:
    """Style and content queries of every block, depth x [B, H, 2L, 64]. Unlike the state, they depend on the adapters."""
    return [block.queries(state.guides, adaln) for block, adaln in zip(model.blocks, state.adaln, strict=True)]


def teacher_forced(
    model: StyleVAR,
    state: ConditionState,
    queries: Sequence[Tensor],
    tokens: Tensor,
    alphas: Tensor | None = None,
    recompute: bool = False,
) -> Tensor:
    """Logits fp32 [B, G, L, V] of `tokens`; see `teacher_forced_features`."""
    return model.head_logits(teacher_forced_features(model, state, queries, tokens, alphas, recompute), state.head_adaln)


def teacher_forced_features(
    model: StyleVAR,
    state: ConditionState,
    queries: Sequence[Tensor],
    tokens: Tensor,
    alphas: Tensor | None = None,
    recompute: bool = False,
) -> Tensor:
    """The head's input [B, G, L, C] for `tokens` (integers [B, G, L]), each given the true tokens of earlier scales.

    `alphas` [L, 1] replaces the model's own style weights. `recompute` keeps only each block's input for the backward
    pass.
    """
    b, g, length = tokens.shape
    idx_Bl = [tokens[..., s].flatten(0, 1).long() for s in model.arch.scale_slices()]
    with torch.no_grad():
        features = model.vae.quantize.teacher_input(idx_Bl)
    later = model.word_embed(features) + model.level_positions()[:, 1:]
    x = torch.cat([state.start.unsqueeze(1).expand(b, g, 1, -1), later.view(b, g, length - 1, model.arch.width)], dim=2)
    alphas = model.alphas() if alphas is None else alphas
    spans = model.causal_spans()
    with recomputed(model.blocks) if recompute else nullcontext():
        for block, adaln, q in zip(model.blocks, state.adaln, queries, strict=True):
            x = block(x, adaln, q, alphas, spans)
    return x

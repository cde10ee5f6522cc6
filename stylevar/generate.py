"""The cached scale-by-scale engine behind inference and rollouts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from stylevar.attention import Span
from stylevar.cache import KVCache
from stylevar.conditions import ConditionState
from stylevar.sampling import Draw, Stream, draw_tokens, pack_support
from stylevar.sampling_config import SamplingConfig
from stylevar.transformer import StyleVAR


@dataclass(frozen=True)
class Generation:
    """tokens int16 [B, G, L]; logp and kept_mass fp32 [B, G, L]; f_hat [B * G, D, h, h]; logits and support if requested."""

    tokens: Tensor
    logp: Tensor
    kept_mass: Tensor
    f_hat: Tensor
    logits: Tensor | None = None
    support: Tensor | None = None


def _paper_bias(earlier: int, now: int, like: Tensor) -> Tensor | None:
    """Attention bias [2T, K] that reproduces the released cache, which holds every earlier scale twice.

    A doubled key is equivalent to a single one with log 2 added to its score. In the content stream all keys are
    doubled, which cancels in the softmax.
    """
    if earlier == 0:
        return None
    bias = torch.zeros(2 * now, earlier + now, device=like.device, dtype=like.dtype)
    bias[:now, :earlier] = math.log(2)
    return bias


class Scale(NamedTuple):
    """One sampled scale: raw logits [B, G, T, V], the tokens drawn, and f_hat [B * G, D, h, h] up to this scale."""

    logits: Tensor
    draw: Draw
    f_hat: Tensor


@torch.no_grad()
def generate_scales(
    model: StyleVAR,
    state: ConditionState,
    queries: Sequence[Tensor],
    group: int,
    stream: Stream,
    sampling: SamplingConfig,
    alphas: Tensor | None = None,
) -> Iterator[Scale]:
    """Sample `group` trajectories per condition of `state` and yield each scale; arguments as in `generate`."""
    arch, quantize = model.arch, model.vae.quantize
    batch = state.start.shape[0]
    cache = KVCache(arch.depth, batch, group, arch.depth, arch.tokens, model.device, model.compute_dtype)
    alphas = model.alphas() if alphas is None else alphas
    positions = model.level_positions()
    x = state.start.unsqueeze(1).expand(-1, group, -1, -1)
    f_hat = quantize.empty(batch * group)
    for s, at in enumerate(arch.scale_slices()):
        now = at.stop - at.start
        span = Span((now,), at.stop, _paper_bias(at.start, now, x) if sampling.kv_cache == "paper" else None)
        for i, (block, adaln, q) in enumerate(zip(model.blocks, state.adaln, queries, strict=True)):
            x = block(x, adaln, q[..., 2 * at.start : 2 * at.stop, :], alphas[at], [span], cache=cache.block(i))
        cache.advance(now)
        logits = model.head_logits(x, state.head_adaln)
        draw = draw_tokens(logits, sampling, stream, at)
        f_hat = f_hat + quantize.embed(draw.tokens.flatten(0, 1), s)
        yield Scale(logits, draw, f_hat)
        if s + 1 < arch.scales:
            following = slice(at.stop, at.stop + arch.patch_nums[s + 1] ** 2)
            x = model.word_embed(quantize.at_scale(f_hat, s + 1)) + positions[:, following]
            x = x.view(batch, group, -1, arch.width)


@torch.no_grad()
def generate(
    model: StyleVAR,
    state: ConditionState,
    queries: Sequence[Tensor],
    group: int,
    stream: Stream,
    sampling: SamplingConfig,
    alphas: Tensor | None = None,
    keep_logits: bool = False,
    keep_support: bool = False,
) -> Generation:
    """Sample `group` trajectories for each of the B conditions of `state`.

    Args:
        queries: `guide_queries(model, state)`.
        stream: the source of randomness.
        alphas: [L, 1] style weights; by default the model's own.
        keep_logits: also return raw logits [B, G, L, V].
        keep_support: also return the sets of tokens that could be drawn, packed uint8 [B, G, L, ceil(V / 8)].
    """
    draws, logits_all, support = [], [], []
    for scale in generate_scales(model, state, queries, group, stream, sampling, alphas):
        logits, draw, f_hat = scale
        draws.append(draw)
        if keep_logits:
            logits_all.append(logits)
        if keep_support:
            support.append(pack_support(torch.ones_like(logits, dtype=torch.bool) if draw.keep is None else draw.keep))
    return Generation(
        tokens=torch.cat([d.tokens for d in draws], dim=2).to(torch.int16),
        logp=torch.cat([d.logp for d in draws], dim=2),
        kept_mass=torch.cat([d.kept_mass for d in draws], dim=2),
        f_hat=f_hat,
        logits=torch.cat(logits_all, dim=2) if keep_logits else None,
        support=torch.cat(support, dim=2) if keep_support else None,
    )

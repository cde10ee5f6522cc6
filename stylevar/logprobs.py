"""Log-probs of given tokens: head, softmax and gather, some rows at a time, so that not all logits are ever alive."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylevar.sampling import unpack_support

CHUNK = 1 << 23
"""Logits that are alive at once (32 MiB)."""


class _TokenLogprobs(torch.autograd.Function):
    """The backward needs no logits: d logp / dx = (W[token] - p W) / temperature, which the forward leaves behind."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, tokens: Tensor, temperature: float, support: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        rows, vocab = x.shape[0], weight.shape[0]
        logp, entropy = x.new_empty(rows), x.new_empty(rows)
        slope = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        size = max(1, CHUNK // vocab)
        for start in range(0, rows, size):
            some = slice(start, start + size)
            logits = F.linear(x[some], weight, bias)
            if temperature != 1.0:
                logits = logits / temperature
            if support is not None:
                logits = logits.masked_fill(~unpack_support(support[some], vocab), -1e9)
            logp_all = logits.log_softmax(-1)
            logp[some] = logp_all.gather(-1, tokens[some].unsqueeze(-1)).squeeze(-1)
            probs = logp_all.exp()
            entropy[some] = -(probs * logp_all).sum(-1)
            if slope is not None:
                slope[some] = (weight[tokens[some]] - probs @ weight) / temperature
        if slope is not None:
            ctx.save_for_backward(slope)
        ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return grads[0].unsqueeze(-1) * slope, None, None, None, None, None


def token_logprobs(
    head: nn.Linear, x: Tensor, tokens: Tensor, temperature: float = 1.0, support: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probs of `tokens` under softmax(head(x) / temperature), and the entropies of those distributions.

    Args:
        head: frozen; gradients go to `x` only.
        x: fp32 [B, G, L, C].
        tokens: integers [B, G, L].
        support: packed uint8 [B, G, L, ceil(V / 8)], the tokens that could be drawn, if the rest is to be left out.
    Returns:
        fp32 [B, G, L] each; the entropies carry no gradient.
    """
    if head.weight.requires_grad:
        raise ValueError("token_logprobs gives the head no gradient: freeze it")
    packed = None if support is None else support.flatten(0, 2)
    logp, entropy = _TokenLogprobs.apply(
        x.flatten(0, 2), head.weight, head.bias, tokens.long().flatten(), temperature, packed
    )
    return logp.view(tokens.shape), entropy.view(tokens.shape)

"""Log-probs and other terms of sampled tokens, computed in chunks of rows, so that not all logits are in memory at once.

The gradient with respect to the head's input follows from the probabilities, so the forward pass computes it and the
backward pass needs no logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stylevar.products import linear, matmul
from stylevar.sampling import unpack_support

CHUNK = 1 << 23
"""Number of logits in memory at once (32 MiB)."""


@dataclass(frozen=True)
class TokenTerms:
    """fp32 [B, G, L] each.

    logp     log-prob of the sampled token; differentiable
    entropy  entropy of the token's distribution p
    gain     sum over all codes v of p(v) A(v), with A constant: its value is 0, its gradient that of the advantages
    spread   standard deviation of A under p
    kl       KL(p || reference) over all codes; differentiable
    """

    logp: Tensor
    entropy: Tensor
    gain: Tensor | None = None
    spread: Tensor | None = None
    kl: Tensor | None = None


@dataclass(frozen=True)
class CodeValues:
    """A quadratic model of the value of each code in a token's place, up to a constant per token:
    value(v) = slope . e_v - curvature / 2 * |e_v - e_sampled|^2.

    slopes     fp32 [B, G, L, D]  dR/dh, where h is the token's vector
    codebook   fp32 [V, D]        the vectors e_v
    curvature  fp32 [L]           non-negative
    """

    slopes: Tensor
    codebook: Tensor
    curvature: Tensor


class _Rows(torch.autograd.Function):
    """`token_terms` of flattened rows: log-prob, entropy, gain, spread, KL; terms that were not requested are zero."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        tokens: Tensor,
        temperature: float,
        support: Tensor | None,
        slopes: Tensor | None,
        codebook: Tensor | None,
        curvature: Tensor | None,
        reference: Tensor | None,
    ) -> tuple[Tensor, ...]:
        rows, vocab = x.shape[0], weight.shape[0]
        logp, entropy = x.new_empty(rows), x.new_empty(rows)
        spread = x.new_empty(rows if slopes is not None else 0)
        kl = x.new_empty(rows if reference is not None else 0)
        wanted = ctx.needs_input_grad[0]
        to_logp = torch.empty_like(x) if wanted else None
        to_gain = torch.empty_like(x) if wanted and slopes is not None else None
        to_kl = torch.empty_like(x) if wanted and reference is not None else None
        size = max(1, CHUNK // vocab)
        for start in range(0, rows, size):
            some = slice(start, start + size)

            def log_softmax(features: Tensor, some: slice = some) -> Tensor:
                logits = linear(features, weight, bias)
                if temperature != 1.0:
                    logits = logits / temperature
                if support is not None:
                    logits = logits.masked_fill(~unpack_support(support[some], vocab), -1e9)
                return logits.log_softmax(-1)

            logp_all = log_softmax(x[some])
            logp[some] = logp_all.gather(-1, tokens[some].unsqueeze(-1)).squeeze(-1)
            probs = logp_all.exp()
            entropy[some] = -(probs * logp_all).sum(-1)
            if to_logp is not None:
                to_logp[some] = (weight[tokens[some]] - matmul(probs, weight)) / temperature
            if slopes is not None:
                assert codebook is not None
                assert curvature is not None
                values = code_values(slopes[some], codebook, curvature[some], tokens[some])
                advantages = values - (probs * values).sum(-1, keepdim=True)
                weighted = probs * advantages
                spread[some] = (weighted * advantages).sum(-1).sqrt()
                if to_gain is not None:
                    to_gain[some] = matmul(weighted, weight) / temperature
            if reference is not None:
                difference = logp_all - log_softmax(reference[some])
                kl[some] = (probs * difference).sum(-1)
                if to_kl is not None:
                    to_kl[some] = matmul(probs * (difference - kl[some].unsqueeze(-1)), weight) / temperature
        gain = 0 * spread  # not finite where the advantages are not, so that the step guard notices
        ctx.save_for_backward(to_logp, to_gain, to_kl)
        ctx.mark_non_differentiable(entropy, spread)
        return logp, entropy, gain, spread, kl

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        to_logp, to_gain, to_kl = ctx.saved_tensors
        slope = grads[0].unsqueeze(-1) * to_logp
        if to_gain is not None:
            slope = slope + grads[2].unsqueeze(-1) * to_gain
        if to_kl is not None:
            slope = slope + grads[4].unsqueeze(-1) * to_kl
        return slope, None, None, None, None, None, None, None, None, None


def code_values(slopes: Tensor, codebook: Tensor, curvature: Tensor, tokens: Tensor) -> Tensor:
    """The values of `CodeValues` for rows [N, D] of slopes, up to a constant per row: fp32 [N, V]."""
    bend = curvature.unsqueeze(-1)
    return (slopes + bend * codebook[tokens]) @ codebook.t() - bend * (codebook.square().sum(-1) / 2)


def token_terms(
    head: nn.Linear,
    x: Tensor,
    tokens: Tensor,
    temperature: float = 1.0,
    support: Tensor | None = None,
    values: CodeValues | None = None,
    reference: Tensor | None = None,
) -> TokenTerms:
    """The terms of `tokens` under p = softmax(head(x) / temperature).

    Args:
        head: frozen; gradients go to `x` only.
        x: fp32 [B, G, L, C].
        tokens: integers [B, G, L].
        support: packed uint8 [B, G, L, ceil(V / 8)]: the tokens that could be drawn, to restrict p to them.
        values: the value of each code, for `gain` and `spread`.
        reference: the reference policy's input to the head, fp32 [B, G, L, C], for `kl`.
    """
    if head.weight.requires_grad:
        raise ValueError("token_terms computes no gradient for the head: freeze it")

    def flat(rows: Tensor | None) -> Tensor | None:
        return None if rows is None else rows.flatten(0, 2)

    def shaped(rows: Tensor) -> Tensor:
        return rows.view(tokens.shape)

    bend = None if values is None else values.curvature.expand(tokens.shape).flatten()
    logp, entropy, gain, spread, kl = _Rows.apply(
        x.flatten(0, 2),
        head.weight,
        head.bias,
        tokens.long().flatten(),
        temperature,
        flat(support),
        None if values is None else flat(values.slopes),
        None if values is None else values.codebook,
        bend,
        flat(reference),
    )
    return TokenTerms(
        shaped(logp),
        shaped(entropy),
        shaped(gain) if values is not None else None,
        shaped(spread) if values is not None else None,
        shaped(kl) if reference is not None else None,
    )


def token_logprobs(
    head: nn.Linear, x: Tensor, tokens: Tensor, temperature: float = 1.0, support: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Only the log-probs and entropies of `token_terms`."""
    terms = token_terms(head, x, tokens, temperature, support)
    return terms.logp, terms.entropy

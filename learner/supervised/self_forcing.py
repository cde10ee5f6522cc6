"""Prefixes with the model's own mistakes, and targets that correct them.

Teacher forcing shows the model true coarse scales only; when it samples, its mistakes there are new to it, and they
compound. Here some tokens of a prefix are the model's own guesses, and every later scale is asked for what is then
missing: the tokens of the residual that the mistakes leave (self-correction, as in Infinity, Han et al. 2024, with
guesses of the model in place of random flips).
"""

from __future__ import annotations

import torch
from torch import Tensor

from stylevar.quantizer import MultiScaleQuantizer


@torch.no_grad()
def self_forced(quantizer: MultiScaleQuantizer, tokens: Tensor, guesses: Tensor, replaced: Tensor) -> tuple[Tensor, Tensor]:
    """Prefixes and targets of B sequences, where `guesses` stand in for the tokens that are `replaced`.

    Args:
        tokens: the true tokens, int64 [B, L].
        guesses: the model's, int64 [B, L].
        replaced: bool [B, L].

    Returns:
        prefix int64 [B, L]: the input, with guesses where `replaced` says so and the corrected targets elsewhere.
        target int64 [B, L]: at each scale, the tokens of what the prefix before it leaves of the image. They are the
            true ones up to and including the first scale with a guess.
    """
    sizes = [p * p for p in quantizer.patch_nums]
    true, guessed, swapped = tokens.split(sizes, dim=1), guesses.split(sizes, dim=1), replaced.split(sizes, dim=1)
    wanted = quantizer.idxBl_to_fhat(true)
    rest = wanted
    clean = torch.ones(len(tokens), 1, dtype=torch.bool, device=tokens.device)
    prefix, target = [], []
    for s in range(len(sizes)):
        # Tokenising a clean rest anew could give another answer: the last bits of the image are not in the tokens.
        right = torch.where(clean, true[s], quantizer.tokenize_scale(rest, s))
        used = torch.where(swapped[s], guessed[s], right)
        rest = rest - quantizer.embed(used, s)
        clean = clean & (used == right).all(dim=1, keepdim=True)
        prefix.append(used)
        target.append(right)
    return torch.cat(prefix, dim=1), torch.cat(target, dim=1)


@torch.no_grad()
def guess(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One token drawn from each distribution: logits fp32 [B, L, V] -> int64 [B, L]."""
    noise = torch.empty_like(logits).exponential_(generator=generator)
    return (logits - noise.log()).argmax(-1)

"""Train on prefixes with the model's own mistakes, with targets that correct them.

With teacher forcing the model only sees true coarse scales. When it samples, its own mistakes are new to it, and they
compound. Here some tokens of a prefix are the model's own guesses, and the targets of every later scale are the tokens of
the residual that the mistakes leave (self-correction as in Infinity, Han et al. 2024, but with the model's guesses instead
of random flips).
"""

from __future__ import annotations

import torch
from torch import Tensor

from stylevar.quantizer import MultiScaleQuantizer


@torch.no_grad()
def self_forced(quantizer: MultiScaleQuantizer, tokens: Tensor, guesses: Tensor, replaced: Tensor) -> tuple[Tensor, Tensor]:
    """Prefixes and targets of B sequences in which `guesses` replace the tokens marked in `replaced`.

    Args:
        tokens: the true tokens, int64 [B, L].
        guesses: the model's tokens, int64 [B, L].
        replaced: bool [B, L].

    Returns:
        prefix int64 [B, L]: the input, with guesses where `replaced` is true and the corrected targets elsewhere.
        target int64 [B, L]: at each scale, the tokens of the residual after the prefix before it. They are the true
            tokens up to and including the first scale with a guess.
    """
    sizes = [p * p for p in quantizer.patch_nums]
    true, guessed, swapped = tokens.split(sizes, dim=1), guesses.split(sizes, dim=1), replaced.split(sizes, dim=1)
    wanted = quantizer.idxBl_to_fhat(true)
    rest = wanted
    clean = torch.ones(len(tokens), 1, dtype=torch.bool, device=tokens.device)
    prefix, target = [], []
    for s in range(len(sizes)):
        # Re-tokenising a residual without guesses could give other tokens: the tokens lack the image's last bits.
        right = torch.where(clean, true[s], quantizer.tokenize_scale(rest, s))
        used = torch.where(swapped[s], guessed[s], right)
        rest = rest - quantizer.embed(used, s)
        clean = clean & (used == right).all(dim=1, keepdim=True)
        prefix.append(used)
        target.append(right)
    return torch.cat(prefix, dim=1), torch.cat(target, dim=1)


@torch.no_grad()
def guess(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one token from each distribution: logits fp32 [B, L, V] -> int64 [B, L]."""
    noise = torch.empty_like(logits).exponential_(generator=generator)
    return (logits - noise.log()).argmax(-1)

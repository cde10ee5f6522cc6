"""From logits to tokens: truncation, random streams, and the recorded log-probs and kept sets."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from stylevar.images import to_device
from stylevar.sampling_config import SamplingConfig


def support_of(logits: Tensor, top_k: int, top_p: float) -> Tensor | None:
    """Which tokens may be drawn: of the `top_k` most likely, the smallest set with a probability of `top_p`. 0 is off.

    Logits [..., V] -> bool [..., V], or None if nothing is cut. The largest logit is always kept, and so are tokens
    that tie with the last one kept.
    """
    vocab = logits.shape[-1]
    k = top_k if 0 < top_k < vocab else vocab
    if not 0.0 < top_p < 1.0:
        return None if k == vocab else logits >= _largest(logits, k)[..., -1:]
    best = _largest(logits, k)
    # All ties with the k-th value are kept, so the shares are relative to everything at or above it.
    ties = (logits >= best[..., -1:]).sum(-1, keepdim=True) - k
    total = torch.logaddexp(best.logsumexp(-1, keepdim=True), best[..., -1:] + ties.log())
    tied_extra = 1.0 - (best - total).exp().sum(-1, keepdim=True)
    share_up_to = tied_extra + (best - total).exp().flip(-1).cumsum(-1).flip(-1)  # of this token and all smaller
    stays = share_up_to > 1.0 - top_p
    stays[..., 0] = True
    last = stays.sum(-1, keepdim=True) - 1
    return logits >= best.gather(-1, last)


def _largest(logits: Tensor, k: int) -> Tensor:
    """The `k` largest values of each row, descending."""
    if logits.device.type != "cpu":
        return logits.topk(k, dim=-1).values
    # With vector instructions, numpy takes a seventh of the time of torch's topk, which would be a quarter of a rollout.
    rows = logits.detach().numpy()
    best = np.partition(rows, rows.shape[-1] - k, axis=-1)[..., -k:]
    best.sort(axis=-1)
    return torch.from_numpy(best).flip(-1)


class Stream(Protocol):
    """A random source: draws token indices [B, G, T] from probabilities [B, G, T, V] for positions `at` of the sequence."""

    def draw(self, probs: Tensor, at: slice) -> Tensor: ...


class SharedStream:
    """One multinomial call per scale over all rows, from one generator (the released sampling)."""

    def __init__(self, seed: int | None, device: torch.device) -> None:
        self.generator = None if seed is None else torch.Generator(device).manual_seed(seed)

    def draw(self, probs: Tensor, at: slice) -> Tensor:
        rows = probs.flatten(0, -2)
        return torch.multinomial(rows, 1, replacement=True, generator=self.generator).view(probs.shape[:-1])


class UniformStream:
    """Inverts the cumulative distribution at one uniform number per token, `uniform` fp32 [B, G, L]."""

    def __init__(self, uniform: Tensor) -> None:
        self.uniform = uniform

    def draw(self, probs: Tensor, at: slice) -> Tensor:
        cumulative = probs.cumsum(-1)
        if probs.device.type != "cpu":  # a CPU adds in order; elsewhere rounding can make the sum decrease
            cumulative = level_over_cut(cumulative, probs)
        total = cumulative[..., -1:]
        # Strictly below the total; otherwise rounding could select a token that was cut.
        point = torch.minimum(self.uniform[..., at].unsqueeze(-1) * total, total * (1 - 2**-23))
        return torch.searchsorted(cumulative, point.contiguous(), right=True).squeeze(-1).clamp_max(probs.shape[-1] - 1)


class TrajectoryStreams(UniformStream):
    """One stream per trajectory. Its numbers depend only on its own seed, not on batch shape, workers or order."""

    def __init__(self, seeds: Tensor, length: int, device: torch.device) -> None:
        """`seeds` int64 [B, G]; `length` = L tokens per trajectory."""
        rows = [torch.rand(length, generator=torch.Generator().manual_seed(int(s))) for s in seeds.flatten()]
        super().__init__(to_device(torch.stack(rows).view(*seeds.shape, length), device))


class CoupledStreams:
    """One stream per trajectory, for comparing two policies with the same random numbers.

    A token is argmax probs / e with e ~ Exp(1) per vocabulary entry (Gumbel-max). Similar policies then draw mostly the
    same tokens, which reduces the noise of their difference. It takes V random numbers per token instead of one.
    """

    def __init__(self, seeds: Tensor, length: int, device: torch.device) -> None:
        """`seeds` int64 [B, G]; `length` and `device` as in `TrajectoryStreams`."""
        self.generators = [torch.Generator().manual_seed(int(s)) for s in seeds.flatten()]
        self.drawn = 0

    def draw(self, probs: Tensor, at: slice) -> Tensor:
        if at.start != self.drawn:
            raise ValueError(f"tokens must be drawn in order: expected {self.drawn}, got {at.start}")
        self.drawn = at.stop
        noise = torch.stack([torch.empty(probs.shape[2:]).exponential_(generator=g) for g in self.generators])
        noise = noise.clamp_min_(torch.finfo(torch.float32).tiny).view(probs.shape)
        return (probs / noise.to(probs.device)).argmax(-1)


def level_over_cut(cumulative: Tensor, probs: Tensor) -> Tensor:
    """`cumulative` without rounding noise: it never decreases and is flat where `probs` is 0, so no draw ends there."""
    return cumulative.where(probs > 0, 0.0).cummax(-1).values


def trajectory_seed(seed: int, step: int, key: str, g: int) -> int:
    """The seed of one trajectory, a 63-bit hash of (seed, step, condition key, g)."""
    digest = hashlib.sha256(f"{seed}/{step}/{key}/{g}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def trajectory_seeds(seed: int, step: int, keys: tuple[str, ...], group: int) -> Tensor:
    """The seeds int64 [B, G] of G trajectories for each condition key."""
    return torch.tensor([[trajectory_seed(seed, step, key, g) for g in range(group)] for key in keys])


@dataclass(frozen=True)
class Draw:
    """Tokens int64 [B, G, T], their full-softmax log-probs, the log of the kept mass (fp32), and the kept set, if any."""

    tokens: Tensor
    logp: Tensor
    kept_mass: Tensor
    keep: Tensor | None


def draw_tokens(logits: Tensor, sampling: SamplingConfig, stream: Stream, at: slice) -> Draw:
    """Sample one scale. `logits` fp32 [B, G, T, V]; `at` is the slice of its tokens in the sequence.

    The policy is softmax(logits / temperature). Truncation changes the sampling distribution; `kept_mass` records by how
    much.
    """
    logits = logits if sampling.temperature == 1.0 else logits / sampling.temperature
    logp_all = logits.log_softmax(-1)
    keep = support_of(logits, sampling.top_k, sampling.top_p)
    probs = logp_all.exp()
    kept_mass = torch.zeros(logits.shape[:-1], device=logits.device)
    if keep is not None:
        probs = probs * keep
        mass = probs.sum(-1, keepdim=True)
        kept_mass, probs = mass.squeeze(-1).log().clamp_max(0.0), probs / mass
    tokens = stream.draw(probs, at)
    return Draw(tokens, logp_all.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), kept_mass, keep)


def pack_support(keep: Tensor) -> Tensor:
    """bool [..., V] -> uint8 [..., ceil(V / 8)], bit i of byte j is token 8 j + i."""
    padding = -keep.shape[-1] % 8
    bits = torch.nn.functional.pad(keep, (0, padding)).unflatten(-1, (-1, 8)).to(torch.uint8)
    weights = (2 ** torch.arange(8, device=keep.device)).to(torch.uint8)
    return (bits * weights).sum(-1, dtype=torch.uint8)


def unpack_support(packed: Tensor, vocab: int) -> Tensor:
    """Inverse of `pack_support`: uint8 [..., ceil(V / 8)] -> bool [..., V]."""
    shifts = torch.arange(8, device=packed.device, dtype=torch.uint8)
    return ((packed.unsqueeze(-1) >> shifts) & 1).bool().flatten(-2)[..., :vocab]

"""The sampler behind rollouts, evaluation, the pipeline and `autoregressive_infer`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stylevar.clock import Clock, untimed
from stylevar.conditions import ConditionState, guide_queries
from stylevar.generate import Generation, Scale, generate, generate_scales
from stylevar.images import pm1_to_u8
from stylevar.sampling import Stream, TrajectoryStreams
from stylevar.sampling_config import SamplingConfig, conditions_at_once
from stylevar.transformer import StyleVAR
from stylevar.vqvae import VQVAE

Streams = Callable[[Tensor, int, torch.device], Stream]
"""Creates the random streams for seeds [B, G], a number of tokens per trajectory, and a device."""


@dataclass(frozen=True)
class Samples:
    """G samples for each of B conditions.

    tokens int16 [B, G, L]; logp and kept_mass fp32 [B, G, L]; images uint8 [B, G, 3, H, W]; support, if requested, packed
    uint8 [B, G, L, ceil(V / 8)].
    """

    tokens: Tensor
    logp: Tensor
    kept_mass: Tensor
    images: Tensor
    support: Tensor | None

    @staticmethod
    def join(parts: Sequence[Samples], dim: int = 0) -> Samples:
        """Concatenate `parts` along conditions (dim 0) or samples (dim 1)."""

        def joined(name: str) -> Tensor:
            return torch.cat([getattr(part, name) for part in parts], dim)

        support = None if parts[0].support is None else joined("support")
        return Samples(joined("tokens"), joined("logp"), joined("kept_mass"), joined("images"), support)


class Sampler:
    """Samples groups from a model's current weights."""

    def __init__(
        self,
        model: StyleVAR,
        config: SamplingConfig,
        *,
        style_strength: float = 0.0,
        streams: Streams = TrajectoryStreams,
        at_once: int = 0,
        decode_at_once: int = 0,
        keep_support: bool = False,
        clock: Clock = untimed,
    ) -> None:
        """
        Args:
            style_strength: see `StyleVAR.alphas`.
            streams: the kind of random stream; CoupledStreams is slower but makes policies comparable.
            at_once, decode_at_once: limits on the samples drawn and decoded together, 0 for none. They do not change the
                samples.
            keep_support: also return the sets of tokens that could be drawn.
            clock: times the phase "decode".
        """
        self.model, self.config, self.style_strength, self.streams = model, config, style_strength, streams
        self.at_once, self.decode_at_once, self.keep_support = at_once, decode_at_once, keep_support
        self.clock = clock

    @torch.no_grad()
    def parts(self, encoded: Callable[[slice], ConditionState], seeds: Tensor) -> Iterator[Samples]:
        """Yield samples for seeds int64 [B, G], for as many conditions at a time as `at_once` allows, but at least one.

        `encoded` is called for the state of each slice of conditions just before it is sampled.
        """
        group = seeds.shape[1]
        conditions = conditions_at_once(self.at_once, len(seeds), group)
        for start in range(0, len(seeds), conditions):
            rows = slice(start, start + conditions)
            state = encoded(rows)
            queries = guide_queries(self.model, state)
            runs = seeds[rows].split(self.at_once or group, dim=1)
            yield Samples.join([self._run(state, queries, some) for some in runs], dim=1)

    @torch.no_grad()
    def scales(self, state: ConditionState, seeds: Tensor) -> Iterator[Scale]:
        """Yield the same samples scale by scale, for all conditions of `state` at once."""
        yield from generate_scales(
            self.model,
            state,
            guide_queries(self.model, state),
            seeds.shape[1],
            self._stream(seeds),
            self.config,
            self.model.alphas(self.style_strength),
        )

    def draw(
        self,
        state: ConditionState,
        queries: Sequence[Tensor],
        stream: Stream,
        group: int,
        alphas: Tensor | None = None,
    ) -> Generation:
        """Draw `group` samples per condition without decoding images.

        `queries` are the state's `guide_queries`; `alphas` [L, 1] replace those of the model and of the style strength.
        """
        alphas = self.model.alphas(self.style_strength) if alphas is None else alphas
        return generate(self.model, state, queries, group, stream, self.config, alphas, keep_support=self.keep_support)

    def images(self, f_hat: Tensor, seeds: Tensor) -> Tensor:
        """Decode latents [B * G, D, h, h] of samples with seeds [B, G] to uint8 [B, G, 3, H, W]."""
        return decode(self.model.vae, f_hat, self.decode_at_once).unflatten(0, tuple(seeds.shape))

    def _run(self, state: ConditionState, queries: Sequence[Tensor], seeds: Tensor) -> Samples:
        drawn = self.draw(state, queries, self._stream(seeds), seeds.shape[1])
        with self.clock("decode"):
            images = self.images(drawn.f_hat, seeds)
        return Samples(drawn.tokens, drawn.logp, drawn.kept_mass, images, drawn.support)

    def _stream(self, seeds: Tensor) -> Stream:
        return self.streams(seeds, self.model.arch.tokens, self.model.device)


@torch.no_grad()
def decode(vae: VQVAE, f_hat: Tensor, at_once: int = 0) -> Tensor:
    """Decode quantised latents [N, D, h, w] to images uint8 [N, 3, H, W], `at_once` at a time (0 for all)."""
    return torch.cat([pm1_to_u8(vae.fhat_to_img(some)) for some in f_hat.split(at_once or len(f_hat))])

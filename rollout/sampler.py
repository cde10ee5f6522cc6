"""Sampling groups of trajectories: the plain class behind the rollout worker."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stylevar.capture import Captured, Record, cuda_graph
from stylevar.clock import Clock, untimed
from stylevar.conditions import ConditionState, encode_batch, guide_queries
from stylevar.contracts import ConditionBatch, PolicyVersion, Trajectories
from stylevar.errors import UserError
from stylevar.generate import generate
from stylevar.images import pm1_to_u8, u8_to_pm1
from stylevar.sampling import CoupledStreams, Stream, TrajectoryStreams, Truncation, UniformStream, trajectory_seeds
from stylevar.transformer import StyleVAR
from stylevar.vqvae import VQVAE


@dataclass(frozen=True)
class RolloutConfig:
    """How trajectories are sampled."""

    group: int = 16
    """Trajectories per condition (G), at least 2."""
    top_k: int = 900
    """Only the best K tokens may be drawn; 0 for all."""
    top_p: float = 0.96
    """Only the smallest set of tokens that holds this share may be drawn; 0 for all."""
    temperature: float = 1.0
    """The policy is softmax(logits / temperature)."""
    kv_cache: Literal["exact", "paper"] = "exact"
    """exact samples from the policy that the learner sees; paper reproduces the released cache."""
    logprob: Literal["full", "support"] = "full"
    """Log-probs under the full softmax (as published), or renormalised over the tokens that could be drawn."""
    rollout_batch: int = 0
    """The most trajectories that are sampled at once; 0 for as many as the memory budget holds."""
    decode_batch: int = 0
    """The most images that pass through the VQ-VAE at once; 0 for as many as the memory budget holds."""
    cuda_graphs: bool = False
    """Record the kernels of a rollout once per shape and replay them: fewer waits between small ones; takes memory."""

    def __post_init__(self) -> None:
        if self.group < 2:
            raise UserError(
                f"--group {self.group}: a group needs at least 2 trajectories, or there is no spread to learn from"
            )
        if self.top_k < 0 or not 0 <= self.top_p <= 1:
            raise UserError(f"--top-k {self.top_k} --top-p {self.top_p}: must be at least 0, and in [0, 1]")
        if not self.temperature > 0:
            raise UserError(f"--temperature {self.temperature}: must be positive")
        for name in ("rollout_batch", "decode_batch"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 0 (0 is automatic)")

    def at_once(self, conditions: int, group: int | None = None) -> int:
        """Of so many conditions, how many are sampled together, at least one; without a bound all of them."""
        return max(1, self.rollout_batch // (group or self.group)) if self.rollout_batch else max(1, conditions)


class ConditionCache:
    """What depends on conditions only, kept for the batches used last: sampler and learner of one process share it.

    It outlives updates and merges, since the adapters touch nothing that it holds.
    """

    def __init__(self, model: StyleVAR, batches: int = 2, images: int = 0) -> None:
        """`images` bounds how many pass through encoders and VQ-VAE at once; a condition has two. 0 for no bound."""
        self.model, self.batches = model, batches
        self._at_once = max(1, images // 2) if images else None
        self._states: dict[tuple[str, ...], ConditionState] = {}

    def get(self, batch: ConditionBatch) -> ConditionState:
        """The encoded conditions of `batch`."""
        state = self._states.pop(batch.keys, None)
        if state is None:
            parts = [encode_batch(self.model, batch.select(rows)) for rows in self._spans(batch)]
            state = ConditionState.join(parts)
        self._states[batch.keys] = state
        while len(self._states) > self.batches:
            self._states.pop(next(iter(self._states)))
        return state

    @torch.no_grad()
    def tokenised(self, batch: ConditionBatch) -> ConditionBatch:
        """`batch` with the VQ tokens of contents and styles, int16 [B, 3, L] on CPU; -1 where a target's are not known."""
        if batch.tokens is not None:
            return batch
        device, vae = self.model.device, self.model.vae
        rows = []
        for some in map(batch.select, self._spans(batch)):
            images = torch.cat([u8_to_pm1(image.to(device)) for image in (some.content, some.style)])
            content, style = torch.cat(vae.img_to_idxBl(images), dim=1).to("cpu", torch.int16).chunk(2)
            rows.append(torch.stack([content, style, torch.full_like(style, -1)], dim=1))
        return dataclasses.replace(batch, tokens=torch.cat(rows))

    def _spans(self, batch: ConditionBatch) -> list[slice]:
        """The conditions of `batch` in parts that are encoded at once."""
        size = self._at_once or len(batch)
        return [slice(at, at + size) for at in range(0, len(batch), size)]


class GroupSampler:
    """Samples G trajectories for each condition from the model's current weights."""

    def __init__(
        self,
        model: StyleVAR,
        config: RolloutConfig,
        conditions: ConditionCache | None = None,
        streams: type[TrajectoryStreams | CoupledStreams] = TrajectoryStreams,
        record: Record = cuda_graph,
        clock: Clock = untimed,
    ) -> None:
        """`streams` turns seeds into tokens; CoupledStreams costs more, and makes policies comparable.

        `clock` is told of the phase "decode".
        With `cuda_graphs` the policy's effective weights must stay where they are (`Adapters.keep_in_place`).
        """
        self.model, self.config, self.streams = model, config, streams
        if config.cuda_graphs and model.device.type != "cuda" and record is cuda_graph:
            raise UserError(f"--cuda-graphs: the model is on {model.device}; leave the flag out, or give --device cuda")
        self._record, self._clock = record, clock
        self._recorded: dict[tuple[int, ...], Captured] = {}
        self.conditions = ConditionCache(model, images=config.decode_batch) if conditions is None else conditions

    @torch.no_grad()
    def sample(
        self, batch: ConditionBatch, seed: int, step: int, version: PolicyVersion, group: int | None = None
    ) -> Trajectories:
        """Trajectories of all conditions of `batch`; equal (seed, step, key, g) give equal random numbers anywhere.

        `group` replaces the configured size, for evaluation.
        """
        config = self.config
        group = config.group if group is None else group
        seeds = trajectory_seeds(seed, step, batch.keys, group)
        state = self.conditions.get(batch)
        at_once = config.at_once(len(batch), group)
        parts = [
            self._sample_part(state.select(slice(i, i + at_once)), seeds[i : i + at_once])
            for i in range(0, len(batch), at_once)
        ]
        tokens, logp, kept_mass, images, *support = _joined(parts, dim=0)
        return Trajectories(batch.keys, tokens, logp, kept_mass, images, seeds, version, support[0] if support else None)

    def _sample_part(self, state: ConditionState, seeds: Tensor) -> list[Tensor]:
        """Tokens, log-probs, kept masses, images and support for seeds [b, G]; a large group is sampled in several runs."""
        queries = guide_queries(self.model, state)
        runs = seeds.split(self.config.rollout_batch or seeds.shape[1], dim=1)
        return _joined([self._run(state, queries, some) for some in runs], dim=1)

    def _run(self, state: ConditionState, queries: list[Tensor], seeds: Tensor) -> list[Tensor]:
        stream = self.streams(seeds, self.model.arch.tokens, self.model.device)
        if self.config.cuda_graphs and isinstance(stream, UniformStream):
            tokens, logp, kept_mass, f_hat, *support = self._replay(state, queries, stream)
        else:
            alphas = self.model.alphas()
            tokens, logp, kept_mass, f_hat, *support = self._generate(state, queries, stream, alphas, seeds.shape[1])
        with self._clock("decode"):
            images = decode(self.model.vae, f_hat, self.config.decode_batch).unflatten(0, tuple(seeds.shape))
        return [tokens, logp, kept_mass, images, *support]

    def _generate(
        self, state: ConditionState, queries: Sequence[Tensor], stream: Stream, alphas: Tensor, group: int
    ) -> list[Tensor]:
        config = self.config
        result = generate(
            self.model,
            state,
            queries,
            group,
            stream,
            Truncation(config.top_k, config.top_p),
            config.temperature,
            alphas,
            config.kv_cache,
            keep_support=config.logprob == "support",
        )
        columns = [result.tokens, result.logp, result.kept_mass, result.f_hat]
        return columns if result.support is None else [*columns, result.support]

    def _replay(self, state: ConditionState, queries: Sequence[Tensor], stream: UniformStream) -> list[Tensor]:
        """`_generate`, recorded for the shape of the group at its first call."""
        depth, group = len(queries), stream.uniform.shape[1]
        inputs = [stream.uniform, self.model.alphas(), state.start, state.head_adaln, *state.adaln, *queries]

        def sample(values: Sequence[Tensor]) -> list[Tensor]:
            uniform, alphas, start, head_adaln, *rest = values
            same = dataclasses.replace(state, start=start, adaln=rest[:depth], head_adaln=head_adaln)
            return self._generate(same, rest[depth:], UniformStream(uniform), alphas, group)

        shape = tuple(stream.uniform.shape)
        if shape not in self._recorded:
            self._recorded[shape] = Captured(sample, inputs, self._record)
        return self._recorded[shape](inputs)


def decode(vae: VQVAE, f_hat: Tensor, at_once: int = 0) -> Tensor:
    """Quantised latents [N, D, h, w] -> images uint8 [N, 3, H, W], `at_once` at a time (0 for all)."""
    return torch.cat([pm1_to_u8(vae.fhat_to_img(some)) for some in f_hat.split(at_once or len(f_hat))])


def _joined(parts: Sequence[Sequence[Tensor]], dim: int) -> list[Tensor]:
    return [torch.cat(column, dim) for column in zip(*parts, strict=True)]

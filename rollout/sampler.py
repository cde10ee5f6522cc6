"""Sample groups of trajectories: the class behind the rollout worker."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from rollout.config import RolloutConfig
from stylevar.branching import Branching, prefix_tokens
from stylevar.capture import Captured, Record, cuda_graph
from stylevar.clock import Clock, untimed
from stylevar.conditions import ConditionState, encode_batch
from stylevar.contracts import ConditionBatch, PolicyVersion, Trajectories
from stylevar.errors import UserError
from stylevar.generate import Generation
from stylevar.images import u8_to_pm1
from stylevar.sampler import Sampler, Samples, Streams
from stylevar.sampling import Stream, TrajectoryStreams, UniformStream, trajectory_seeds
from stylevar.transformer import StyleVAR


class ConditionCache:
    """Caches the encoded conditions of the last batches. The sampler and learner of one process share it.

    It stays valid across updates and merges, because nothing in it depends on the adapters.
    """

    def __init__(self, model: StyleVAR, batches: int = 2, images: int = 0) -> None:
        """`images` limits how many images are encoded at once (0 for no limit); a condition has two."""
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
    def tokenized(self, batch: ConditionBatch) -> ConditionBatch:
        """`batch` with the VQ tokens of contents and styles, int16 [B, 3, L] on CPU; -1 for unknown target tokens."""
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
        """Split the conditions of `batch` into parts to encode at once."""
        size = self._at_once or len(batch)
        return [slice(at, at + size) for at in range(0, len(batch), size)]


class GroupSampler(Sampler):
    """Samples G trajectories for each condition from the model's current weights."""

    def __init__(
        self,
        model: StyleVAR,
        config: RolloutConfig,
        conditions: ConditionCache | None = None,
        streams: Streams = TrajectoryStreams,
        record: Record = cuda_graph,
        clock: Clock = untimed,
        branch_after: int | None = None,
    ) -> None:
        """`streams` and `clock`: see `Sampler`.

        With `branch_after`, trajectories of a group share their first scales, this many (0 chooses), as `Branching` says; it
        replaces `streams`. Raises UserError if no scale is left after them.
        With `cuda_graphs` the policy's effective weights must keep their memory addresses (`Adapters.keep_in_place`).
        """
        self._seeds = trajectory_seeds
        if branch_after is not None:
            branching = Branching(prefix_tokens(model.arch.patch_nums, branch_after))
            self._seeds, streams = branching.seeds, branching.streams
        super().__init__(
            model,
            config,
            streams=streams,
            at_once=config.rollout_batch,
            decode_at_once=config.decode_batch,
            keep_support=config.logprob == "support",
            clock=clock,
        )
        if config.cuda_graphs and model.device.type != "cuda" and record is cuda_graph:
            raise UserError(f"--cuda-graphs: the model is on {model.device}; leave the flag out, or give --device cuda")
        self._group, self._graphs, self._record = config.group, config.cuda_graphs, record
        self._recorded: dict[tuple[int, ...], Captured] = {}
        self.conditions = ConditionCache(model, images=config.decode_batch) if conditions is None else conditions

    def sample(
        self, batch: ConditionBatch, seed: int, step: int, version: PolicyVersion, group: int | None = None
    ) -> Trajectories:
        """Sample trajectories for all conditions of `batch`. Random numbers depend only on (seed, step, key, g).

        `group` replaces the configured size, for evaluation.
        """
        seeds = self._seeds(seed, step, batch.keys, self._group if group is None else group)
        drawn = Samples.join(list(self.parts(self.conditions.get(batch).select, seeds)))
        return Trajectories(
            batch.keys, drawn.tokens, drawn.logp, drawn.kept_mass, drawn.images, seeds, version, drawn.support
        )

    def draw(
        self,
        state: ConditionState,
        queries: Sequence[Tensor],
        stream: Stream,
        group: int,
        alphas: Tensor | None = None,
    ) -> Generation:
        """See `Sampler.draw`. With `cuda_graphs`, the first call for each group shape records the kernels."""
        draw, depth = super().draw, len(queries)
        if not (self._graphs and isinstance(stream, UniformStream)):
            return draw(state, queries, stream, group, alphas)
        alphas = self.model.alphas() if alphas is None else alphas
        inputs = [stream.uniform, alphas, state.start, state.head_adaln, *state.adaln, *queries]

        def drawn(values: Sequence[Tensor]) -> list[Tensor]:
            uniform, alphas, start, head_adaln, *rest = values
            same = dataclasses.replace(state, start=start, adaln=rest[:depth], head_adaln=head_adaln)
            result = draw(same, rest[depth:], UniformStream(uniform), group, alphas)
            columns = [result.tokens, result.logp, result.kept_mass, result.f_hat]
            return columns if result.support is None else [*columns, result.support]

        shape = tuple(stream.uniform.shape)
        if shape not in self._recorded:
            self._recorded[shape] = Captured(drawn, inputs, self._record)
        tokens, logp, kept_mass, f_hat, *support = self._recorded[shape](inputs)
        return Generation(tokens, logp, kept_mass, f_hat, support=support[0] if support else None)

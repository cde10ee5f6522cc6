"""Memory of each role by component, measured by running the run's own code on the meta device.

The memory of a phase is the most that is live at once while it runs, beyond the weights. Phases run one after another, so a
process needs what is always there plus its largest phase. Kernel workspace, fragmentation and a GPU's context come on top.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from launch.sizing.phases import Phases, Workload, first_blocks, meta_scorer, over_depth, score
from launch.sizing.trace import peak_bytes, saved_bytes
from learner.grpo.config import LearnerConfig
from rollout.config import RolloutConfig
from stylevar.conditions import ConditionState
from stylevar.lowrank import kept_effective

ALWAYS = "always"
_CACHED_BATCHES = 2  # of a ConditionCache


@dataclass(frozen=True)
class Component:
    """`bytes` that are in use during one `phase`, or always."""

    name: str
    bytes: int
    phase: str = ALWAYS


@dataclass(frozen=True)
class RoleMemory:
    """The components of one process."""

    components: tuple[Component, ...]

    @property
    def phases(self) -> dict[str, int]:
        """Bytes of each phase, beyond what is always there."""
        totals: dict[str, int] = {}
        for part in self.components:
            if part.phase != ALWAYS:
                totals[part.phase] = totals.get(part.phase, 0) + part.bytes
        return totals

    @property
    def total(self) -> int:
        """The most that is there at once, in bytes."""
        return sum(part.bytes for part in self.components if part.phase == ALWAYS) + max(self.phases.values(), default=0)


@dataclass(frozen=True)
class Batches:
    """How much is computed at once."""

    micro: int
    """Trajectories of a group in a forward and backward pass, and in the reference pass."""
    rollout: int
    """Trajectories that are sampled."""
    images: int
    """Images that pass through the VQ-VAE."""

    @classmethod
    def of(cls, work: Workload, conditions: int) -> Batches:
        """Those of the settings; a size that is not set covers all trajectories of `conditions`."""
        group, settings = work.rollout.group, work.rollout
        every = conditions * group
        return cls(work.learner.micro_batch or group, settings.rollout_batch or every, settings.decode_batch or every)


class MemoryPlan:
    """Measures a workload's phases and composes them into roles.

    Args:
        conditions: how many are encoded, sampled and scored in one call: all of a step (B) in a colocated run, those of a
            unit in a distributed one.
        process: bytes of the interpreter and its libraries, in every process.
        batches: replaces those of the settings.
    """

    def __init__(self, work: Workload, conditions: int, process: int = 0, batches: Batches | None = None) -> None:
        self.work, self.process, self.conditions = work, process, conditions
        batches = batches or Batches.of(work, conditions)
        self.measured = measure(work, batches, conditions)

    def rollout(self) -> RoleMemory:
        """A rollout worker."""
        return RoleMemory((*self._model(), *self._state(self.conditions), *self._sampling()))

    def reward_worker(self) -> RoleMemory:
        """A reward worker."""
        return RoleMemory((*self._libraries(), *self._scoring()))

    def learner(self, conditions: int) -> RoleMemory:
        """A learner that holds `conditions` prepared conditions at a time."""
        return RoleMemory((*self._model(), *self._state(conditions, cached=1), *self._learning(), *self._encoding()))

    def colocated(self) -> RoleMemory:
        """All roles in one process over one copy of the weights."""
        parts = (*self._model(), *self._state(self.conditions), *self._sampling(), *self._scoring(), *self._learning())
        return RoleMemory(parts)

    def batched(self) -> RoleMemory:
        """Only what depends on batch sizes: sampling and learning."""
        return RoleMemory((*self._sampling(), *self._learning()))

    def _libraries(self) -> list[Component]:
        return [Component("interpreter and libraries", self.process)] if self.process else []

    def _model(self) -> list[Component]:
        m = self.measured
        return [
            *self._libraries(),
            Component("transformer", m["transformer"]),
            Component("VQ-VAE", m["VQ-VAE"]),
            Component("adapters", m["adapters"]),
            Component("effective weights", m["effective"]),
        ]

    def _state(self, conditions: int, cached: int = _CACHED_BATCHES) -> list[Component]:
        return [Component("encoded conditions", cached * conditions * self.measured["state"])]

    def _encoding(self) -> list[Component]:
        return [Component("encoders", self.measured["encode"], "encode")]

    def _sampling(self) -> list[Component]:
        m = self.measured
        # A recorded rollout keeps its memory.
        phase = ALWAYS if self.work.rollout.cuda_graphs else "sample"
        return [
            *self._encoding(),
            Component("guide queries", m["queries"], phase),
            Component("KV cache", m["cache"], phase),
            Component("logits and sampling", m["sample"] - m["cache"], phase),
            Component("guide queries", m["queries"], "decode"),
            Component("VQ-VAE decoder", m["decode"], "decode"),
            Component("sampled images", self._pictures()),
        ]

    def _pictures(self) -> int:
        """uint8; counted twice, because parts are joined into one tensor."""
        return 2 * self.conditions * self.work.rollout.group * 3 * self.work.arch.image_size**2

    def _scoring(self) -> list[Component]:
        weights, activations = _reward(_only_scoring(self.work), self.conditions)
        return [Component("reward model", weights), Component("reward activations", activations, "score")]

    def _learning(self) -> list[Component]:
        m, adapters = self.measured, self.measured["adapters"]
        # The backward pass frees what was saved as it goes.
        saved = min(m["saved"], m["update"])
        on_host = self.work.on_gpu and self.work.learner.optimizer_device == "cpu"
        return [
            *([] if on_host else [Component("optimizer moments", 2 * adapters)]),
            Component("gradients", adapters),
            Component("adapter snapshots (peak, best)", 2 * adapters),
            *self._crediting(),
            Component("logits and activations", m["reference"], "reference"),
            Component("saved activations", saved, "update"),
            Component("logits and backward", m["update"] - saved, "update"),
        ]

    def _crediting(self) -> list[Component]:
        """What credit and KL keep of trajectories beside log-probs, and the way back through the decoder."""
        work = self.work
        trajectories, tokens = self.conditions * work.rollout.group, work.arch.tokens
        kept = []
        if work.learner.kl_estimator == "full":
            kept.append(Component("reference features", 4 * trajectories * tokens * work.arch.width))
        if work.learner.credit == "gradient":
            kept.append(Component("reward gradients", 2 * trajectories * 3 * work.arch.image_size**2))
            kept.append(Component("slopes of the tokens", 4 * trajectories * tokens * work.arch.Cvae))
            kept.append(Component("decoder and its backward", self.measured["credit"], "credit"))
        return kept


def parameter_counts(work: Workload) -> dict[str, int]:
    """Parameters of the transformer, the VQ-VAE and the adapters."""
    phases = Phases(work)
    trainable = phases.adapters.parameters()
    own = {id(p) for p in trainable}
    return {
        "transformer": sum(p.numel() for p in phases.model.parameters() if id(p) not in own),
        "VQ-VAE": sum(p.numel() for p in phases.model.vae.parameters()),
        "adapters": sum(p.numel() for p in trainable),
    }


def saved_activations(work: Workload, group: int) -> int:
    """Bytes that autograd keeps between forward and backward of one condition's micro-batch of `group` trajectories."""

    def measure(phases: Phases) -> dict[str, int]:
        with phases.adapters.effective_weights():
            return {"saved": _saved(phases, phases.encode(1), group)}

    return over_depth(work, measure)["saved"]


def _weights(phases: Phases) -> dict[str, int]:
    adapters = _bytes(phases.adapters.parameters())
    with phases.adapters.effective_weights():
        effective = _bytes(_effective(phases))
    vae = phases.model.vae
    return {
        "transformer": _bytes([*phases.model.parameters(), *phases.model.buffers()]) - adapters,
        "VQ-VAE": _bytes([*vae.parameters(), *vae.buffers()]),
        "adapters": adapters,
        "effective": effective,
    }


@lru_cache(maxsize=8)
def measure(work: Workload, batches: Batches, conditions: int) -> dict[str, int]:
    """Bytes by purpose; see `MemoryPlan`."""
    arch, group = work.arch, work.rollout.group
    sampled, unit = min(group, batches.rollout), min(conditions, max(1, batches.rollout // group))
    chunk = min(unit * sampled, batches.images)
    phases = first_blocks(work, 1)
    state = phases.encode(unit, tokens_known=True)
    _, encode = peak_bytes(lambda: phases.encode(min(conditions, max(1, batches.images // 2))))
    _, decode = peak_bytes(lambda: phases.decode(chunk))
    _, credit = peak_bytes(lambda: phases.credit(min(work.learner.credit_batch, conditions * group)))
    with phases.adapters.effective_weights():
        # A block passes its output on and keeps only its part of the cache, which is allocated at the start.
        queries = phases.queries(state)
        _, sample = peak_bytes(lambda: phases.sample(state, queries, sampled))
    # Keys and values [depth, 2, b, G, H, L, 64].
    cache = arch.depth * 2 * unit * sampled * arch.tokens * arch.width * phases.model.compute_dtype.itemsize
    blocks = over_depth(work, lambda phases: _measure(phases, batches.micro, unit))
    return {**blocks, "encode": encode, "decode": decode, "credit": credit, "sample": sample, "cache": cache}


def _measure(phases: Phases, micro: int, unit: int) -> dict[str, int]:
    """What grows with the depth."""
    some = phases.encode(unit, tokens_known=True)
    one = some.select(slice(0, 1))
    with phases.adapters.effective_weights():
        queries = phases.queries(some)
        _, reference = peak_bytes(lambda: phases.reference(one, micro))
        saved = _saved(phases, one, micro)
        _, update = peak_bytes(lambda: _update(phases, one, micro))
    return {
        **_weights(phases),
        "state": _bytes(_tensors(some)) // unit,
        "queries": _bytes(queries),
        "reference": reference,
        "saved": saved,
        "update": update,
    }


def _saved(phases: Phases, state: ConditionState, group: int) -> int:
    weights = [*phases.model.parameters(), *phases.model.buffers(), *phases.model.vae.parameters(), *_effective(phases)]
    return saved_bytes(lambda: phases.forward(state, group), [*weights, *_tensors(state)])[1]


def _update(phases: Phases, state: ConditionState, group: int) -> None:
    queries, leaves, end = phases.forward(state, group)
    torch.autograd.backward(end)
    phases.backward_queries(queries, leaves)


def _only_scoring(work: Workload) -> Workload:
    """The same scoring with all other settings at their defaults, so that `_reward` measures it once for all of them."""
    learner, rollout = LearnerConfig(credit=work.learner.credit), RolloutConfig(group=work.rollout.group)
    return Workload(work.arch, learner, rollout, work.reward)


@lru_cache
def _reward(work: Workload, conditions: int) -> tuple[int, int]:
    """Bytes of the reward's weights, and of scoring `conditions`, a batch of images at a time."""
    config, group = work.reward, work.rollout.group
    distance = meta_scorer(config).distance
    at_once = min(conditions, max(1, config.reward_batch // group))
    _, activations = peak_bytes(lambda: score(work, at_once, group))
    return _bytes([*distance.parameters(), *distance.buffers()]), activations


def _effective(phases: Phases) -> list[Tensor]:
    kept = map(kept_effective, phases.adapters.layers.values())
    return [weight for weight in kept if weight is not None]


def _tensors(state: ConditionState) -> list[Tensor]:
    return [state.start, state.guides, state.head_adaln, *state.adaln]


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages beneath."""
    storages = {id(s): s for s in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storage.nbytes() for storage in storages.values())

"""Memory of each role by component, from the shapes of the run's own code on the meta device.

What a phase takes beyond the weights is the most that is live at once while it runs; phases come one after another, so a
process needs what is always there and the largest of its phases. Work space inside kernels, fragmentation and a GPU's
context come on top.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from launch.plan.phases import Phases, Workload, meta_scorer, over_depth
from launch.plan.trace import peak_bytes, saved_bytes
from stylevar.conditions import ConditionState
from stylevar.lowrank import MERGED

ALWAYS = "always"
_CACHED_BATCHES = 2  # of a ConditionCache


@dataclass(frozen=True)
class Component:
    """`bytes` that are there in one `phase`, or always."""

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


class MemoryPlan:
    """Measures a workload's phases and composes them into roles.

    Args:
        unit: conditions that are sampled at once.
        scored: conditions that are scored in one call.
        encoded: conditions that the sampling process encodes at once.
        process: bytes of the interpreter and its libraries, in every process.
    """

    def __init__(self, work: Workload, unit: int, scored: int, encoded: int, process: int = 0) -> None:
        self.work, self.process = work, process
        self.unit, self.encoded = unit, encoded
        self.shared = _weights(work)
        self.measured = over_depth(work, lambda phases: _measure(phases, unit, encoded))
        self.reward = _reward(work, scored)

    def rollout(self) -> RoleMemory:
        """A rollout worker."""
        return RoleMemory((*self._model(), *self._state(self.encoded), *self._sampling()))

    def reward_worker(self) -> RoleMemory:
        """A reward worker."""
        return RoleMemory((*self._libraries(), *self._scoring()))

    def learner(self, conditions: int) -> RoleMemory:
        """A learner that holds `conditions` prepared conditions at a time."""
        return RoleMemory((*self._model(), *self._state(conditions, cached=1), *self._learning(), *self._encoding()))

    def colocated(self) -> RoleMemory:
        """All roles in one process over one copy of the weights."""
        parts = (*self._model(), *self._state(self.encoded), *self._sampling(), *self._scoring(), *self._learning())
        return RoleMemory(parts)

    def _libraries(self) -> list[Component]:
        return [Component("interpreter and libraries", self.process)] if self.process else []

    def _model(self) -> list[Component]:
        s = self.shared
        return [
            *self._libraries(),
            Component("transformer", s["transformer"]),
            Component("VQ-VAE", s["VQ-VAE"]),
            Component("adapters", s["adapters"]),
            Component("merged weights", s["merged"]),
        ]

    def _state(self, conditions: int, cached: int = _CACHED_BATCHES) -> list[Component]:
        return [Component("encoded conditions", cached * conditions * self.measured["state"])]

    def _encoding(self) -> list[Component]:
        return [Component("encoders", self.measured["encode"], "encode")]

    def _sampling(self) -> list[Component]:
        m = self.measured
        return [
            *self._encoding(),
            Component("guide queries", m["queries"], "sample"),
            Component("KV cache", m["cache"], "sample"),
            Component("logits and sampling", m["sample"] - m["cache"], "sample"),
            Component("guide queries", m["queries"], "decode"),
            Component("VQ-VAE decoder", m["decode"], "decode"),
        ]

    def _scoring(self) -> list[Component]:
        weights, activations = self.reward
        return [Component("reward model", weights), Component("reward activations", activations, "score")]

    def _learning(self) -> list[Component]:
        m, adapters = self.measured, self.shared["adapters"]
        return [
            Component("optimizer moments", 2 * adapters),
            Component("adapter snapshots (peak, best)", 2 * adapters),
            Component("logits and activations", m["reference"], "reference"),
            Component("gradients", adapters, "update"),
            Component("saved activations", m["saved"], "update"),
            Component("logits and backward", m["update"] - m["saved"] - m["gradients"], "update"),
        ]


def adapter_bytes(work: Workload) -> int:
    """Bytes of the adapters in fp32."""
    return _weights(work)["adapters"]


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
        with phases.adapters.merged():
            return {"saved": _saved(phases, phases.encode(1), group)}

    return over_depth(work, measure)["saved"]


def _weights(work: Workload) -> dict[str, int]:
    phases = Phases(work)
    adapters = _bytes(phases.adapters.parameters())
    with phases.adapters.merged():
        merged = _bytes(_merged(phases))
    model = _bytes([*phases.model.parameters(), *phases.model.buffers()])
    vae = phases.model.vae
    return {
        "transformer": model - adapters,
        "VQ-VAE": _bytes([*vae.parameters(), *vae.buffers()]),
        "adapters": adapters,
        "merged": merged,
    }


def _measure(phases: Phases, unit: int, encoded: int) -> dict[str, int]:
    work, group = phases.work, phases.work.rollout.group
    micro = work.learner.micro_batch or group
    _, encode = peak_bytes(lambda: phases.encode(encoded))
    one, some = phases.encode(1), phases.encode(unit)
    sampled = min(group, work.rollout.rollout_batch)
    with phases.adapters.merged():
        queries = phases.queries(some)
        _, sample = peak_bytes(lambda: phases.sample(some, queries, sampled))
        _, decode = peak_bytes(lambda: phases.decode(unit * sampled))
        _, reference = peak_bytes(lambda: phases.reference(one, micro))
        saved = _saved(phases, one, micro)
        _, update = peak_bytes(lambda: _update(phases, one, micro))
    gradients = _bytes(p.grad for p in phases.adapters.parameters() if p.grad is not None)
    # Keys and values in fp32: [depth, 2, b, G, H, L, 64], all of it however many blocks are measured here.
    cache = work.arch.depth * 2 * unit * sampled * work.arch.tokens * work.arch.width * 4
    return {
        "state": _bytes(_tensors(one)),
        "encode": encode,
        "queries": _bytes(queries),
        "cache": cache,
        "sample": sample,
        "decode": decode,
        "reference": reference,
        "saved": saved,
        "update": update,
        "gradients": gradients,
    }


def _saved(phases: Phases, state: ConditionState, group: int) -> int:
    weights = [*phases.model.parameters(), *phases.model.buffers(), *phases.model.vae.parameters(), *_merged(phases)]
    return saved_bytes(lambda: phases.forward(state, group), [*weights, *_tensors(state)])[1]


def _update(phases: Phases, state: ConditionState, group: int) -> None:
    queries, leaves, end = phases.forward(state, group)
    end.backward()
    phases.backward_queries(queries, leaves)


def _reward(work: Workload, conditions: int) -> tuple[int, int]:
    """Bytes of the reward's weights, and of scoring `conditions`, a batch of images at a time."""
    scorer = meta_scorer(work.reward)
    phases = Phases(work, blocks=1)
    at_once = min(conditions, max(1, work.reward.reward_batch // work.rollout.group))
    _, activations = peak_bytes(lambda: phases.score(at_once, work.rollout.group))
    distance = scorer.distance
    return _bytes([*distance.parameters(), *distance.buffers()]), activations


def _merged(phases: Phases) -> list[Tensor]:
    return [getattr(layer, MERGED) for layer in phases.adapters.layers.values() if hasattr(layer, MERGED)]


def _tensors(state: ConditionState) -> list[Tensor]:
    return [state.start, state.guides, state.head_adaln, *state.adaln]


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages beneath."""
    storages = {id(s): s for s in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storage.nbytes() for storage in storages.values())

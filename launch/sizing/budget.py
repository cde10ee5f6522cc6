"""Choose batch sizes that fit the memory budget.

A batch size left at 0 becomes the largest one whose phases fit, as estimated by `memory.py`. The choice depends only on the
settings, the architecture and the budget. It is saved in the run's config.yaml, and a resumed run keeps it: other batch
sizes would round sums differently.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from launch.common.text import parse_size, size
from launch.configs.cluster import Role
from launch.configs.grpo import GrpoConfig
from launch.sizing.memory import ALWAYS, Batches, Component, MemoryPlan, RoleMemory
from launch.sizing.phases import Workload
from stylevar.config import ModelConfig

GIB = 1 << 30
RESERVE = {"cuda": 0.1, "cpu": 0.05}
"""Share of the budget kept free for what the plan does not see: kernel workspace and fragmentation. A CPU took 4 to 5 %
more than planned at depth 20."""
PROCESS = 1 << 30
"""Bytes that a CPU process takes without a model: interpreter, libraries, buffers."""
MOST_SAMPLED, MOST_DECODED = 128, 8
"""Larger batches of trajectories or images are no faster. On an H200, fp32 convolutions were 20 % slower with 32 images than
with 8, and took 15 GiB of workspace."""
WITHOUT_BUDGET = {"update": 1.5 * GIB, "reference": 1.5 * GIB, "sample": 4 * GIB, "encode": 1.5 * GIB, "decode": 1.5 * GIB}
"""Bytes that a phase may use when there is no budget, as on CPUs, where even larger batches are slower."""

PHASES = {"micro": ("reference", "update"), "rollout": ("sample",), "images": ("encode", "decode")}
"""The phases whose memory depends on each field of `Batches`."""
FLAGS = {"micro": "--micro-batch", "rollout": "--rollout-batch", "images": "--decode-batch"}


@dataclass(frozen=True)
class Choice:
    """The settings with every batch size filled in. `shortage` says what is missing if not even the smallest fit."""

    config: GrpoConfig
    shortage: str | None = None

    def facts(self) -> dict[str, object]:
        """What was chosen, for people to read."""
        c = self.config
        facts: dict[str, object] = {
            "micro-batch": c.learner.micro_batch,
            "rollout batch": c.rollout.rollout_batch,
            "decode batch": c.rollout.decode_batch,
        }
        return facts | ({"optimizer on": "cpu"} if c.learner.optimizer_device == "cpu" else {})


@dataclass(frozen=True)
class _Share:
    """A process with a budget: the batch sizes that it decides, and its memory as a function of them."""

    name: str
    fields: tuple[str, ...]
    conditions: int
    memory: Callable[[MemoryPlan], RoleMemory]


def usable(budget: int, on_gpu: bool) -> int:
    """The bytes of a budget that a plan may fill."""
    return int(budget * (1 - RESERVE["cuda" if on_gpu else "cpu"]))


def device_budget(config: GrpoConfig, device: torch.device) -> int | None:
    """Bytes of its device that a process may use: the setting, or what is free on the GPU now. None means no bound."""
    if config.memory_budget is not None:
        return parse_size(config.memory_budget)
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def workload(config: GrpoConfig, arch: ModelConfig, on_gpu: bool, tokens_known: bool = False) -> Workload:
    """The workload of a run with these settings."""
    return Workload(arch, config.learner, config.rollout, config.reward, tokens_known, config.precision, on_gpu)


def choose(config: GrpoConfig, arch: ModelConfig, budgets: Mapping[Role, int | None], on_gpu: bool) -> Choice:
    """Fill in what is left open of micro-batch, rollout batch, decode batch, and where the optimizer's moments are kept.

    Args:
        budgets: bytes for each role's process, None for no bound; the colocated process uses the learner's.
        on_gpu: whether the budgets are GPU memory.
    """
    learner, rollout = config.learner, config.rollout
    open_device = learner.optimizer_device == "auto" and on_gpu
    if not on_gpu or open_device:  # on a CPU both are the same memory
        config = _with(config, optimizer_device="device")
    if learner.micro_batch and rollout.rollout_batch and rollout.decode_batch and not open_device:
        return Choice(config)
    choice = _choose(config, arch, budgets, on_gpu)
    if choice.shortage is not None and open_device:
        on_host = _choose(_with(config, optimizer_device="cpu"), arch, budgets, on_gpu)
        choice = on_host if on_host.shortage is None else choice
    return choice


def _choose(config: GrpoConfig, arch: ModelConfig, budgets: Mapping[Role, int | None], on_gpu: bool) -> Choice:
    chosen: dict[str, int] = {}
    shortages = []
    for share in _shares(config, bounded=budgets["learner"] is not None):
        budget = budgets["rollout" if share.name == "rollout" else "learner"]
        sizes, shortage = _choose_for(share, config, arch, budget, on_gpu)
        chosen |= sizes
        shortages += [shortage] if shortage else []
    rollout = dataclasses.replace(config.rollout, rollout_batch=chosen["rollout"], decode_batch=chosen["images"])
    config = dataclasses.replace(_with(config, micro_batch=chosen["micro"]), rollout=rollout)
    return Choice(config, " ".join(shortages) or None)


def _choose_for(
    share: _Share, config: GrpoConfig, arch: ModelConfig, budget: int | None, on_gpu: bool
) -> tuple[dict[str, int], str | None]:
    """The largest sizes that fit into one process, or the smallest and what is missing."""
    candidates = _candidates(config, share.conditions)
    recorded = config.rollout.cuda_graphs and "rollout" in share.fields
    unrecorded = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, cuda_graphs=False))

    def measured(end: int) -> _Measured:
        batches = _batches(candidates, end)
        return _Measured(batches, _memory(unrecorded, arch, share, batches, on_gpu, budget is not None))

    most = measured(-1)
    room = _room(most.memory, budget, on_gpu)
    if not recorded and all(_fits(most, name, room) for name in share.fields):
        return {name: getattr(most.batches, name) for name in share.fields}, None
    least = measured(0)
    chosen: dict[str, int] = {}
    for name in sorted(share.fields, key=lambda name: name != "rollout"):
        at = (_between(least, most, name, n) for n in candidates[name])
        allowed = room
        if recorded and name == "rollout":
            # Its memory stays reserved during the other phases: take at most half, and leave room for the smallest of them.
            others = max(bytes_ for phase, bytes_ in least.memory.phases.items() if phase != "sample")
            allowed = {phase: min(bytes_ / 2, bytes_ - others) for phase, bytes_ in room.items()}
        fitting = [between for between in at if _fits(between, name, allowed)] or [least]
        chosen[name] = getattr(fitting[-1].batches, name)
        if allowed is not room:
            kept = fitting[-1].memory.phases["sample"]
            room = {phase: bytes_ - kept for phase, bytes_ in room.items()}
    if budget is None:
        return chosen, None
    at_least = _memory(config, arch, share, least.batches, on_gpu, bounded=True)
    if at_least.total <= usable(budget, on_gpu):
        return chosen, None
    return chosen, _shortage(config, arch, share, on_gpu, budget, at_least)


@dataclass(frozen=True)
class _Measured:
    batches: Batches
    memory: RoleMemory


def _between(least: _Measured, most: _Measured, name: str, n: int) -> _Measured:
    """An upper bound on the memory at batch size `n` of one field.

    The memory of a phase is the maximum of sums that grow linearly with its batch: a convex function, so it stays below the
    line between the two measured ends.
    """
    low, high = getattr(least.batches, name), getattr(most.batches, name)
    share = 0.0 if low == high else (n - low) / (high - low)
    bytes_ = {phase: (1 - share) * least.memory.phases[phase] + share * most.memory.phases[phase] for phase in PHASES[name]}
    parts = tuple(Component(name, math.ceil(count), phase) for phase, count in bytes_.items())
    return _Measured(dataclasses.replace(least.batches, **{name: n}), RoleMemory(parts))


def _fits(measured: _Measured, name: str, room: Mapping[str, float]) -> bool:
    return all(measured.memory.phases[phase] <= room[phase] for phase in PHASES[name])


def _memory(
    config: GrpoConfig, arch: ModelConfig, share: _Share, batches: Batches, on_gpu: bool, bounded: bool
) -> RoleMemory:
    process = PROCESS if bounded and not on_gpu else 0
    return share.memory(MemoryPlan(workload(config, arch, on_gpu), share.conditions, process, batches))


def _shares(config: GrpoConfig, bounded: bool) -> list[_Share]:
    if config.cluster.placement == "colocated":
        # Only a budget has to hold the reward, too; tracing it takes as long as all the rest.
        memory = MemoryPlan.colocated if bounded or config.rollout.cuda_graphs else MemoryPlan.batched
        return [_Share("colocated", tuple(PHASES), config.conditions, memory)]
    # The largest unit for any number of workers, so that the choice does not depend on how many there are.
    unit = config.cluster.unit or config.conditions // config.learner.minibatches
    held = conditions_held(config)
    return [
        _Share("rollout", ("rollout", "images"), unit, MemoryPlan.rollout),
        _Share("learner", ("micro",), unit, lambda plan: plan.learner(held)),
    ]


def conditions_held(config: GrpoConfig) -> int:
    """Prepared conditions that each learner of a distributed run holds."""
    return -(-config.conditions // config.cluster.learners) * (1 + config.cluster.max_staleness)


def _with(config: GrpoConfig, **learner: Any) -> GrpoConfig:
    return dataclasses.replace(config, learner=dataclasses.replace(config.learner, **learner))


def _candidates(config: GrpoConfig, conditions: int) -> dict[str, Sequence[int]]:
    """The sizes to choose from, ascending: equal parts of a group, then whole groups. A size that is set has no other."""
    group = config.rollout.group
    parts = sorted({-(-group // share) for share in range(1, group + 1)})
    most = min(MOST_SAMPLED, conditions * group)
    sampled = [n for n in parts if n <= most] + [k * group for k in range(2, most // group + 1)]
    given = {
        "micro": config.learner.micro_batch,
        "rollout": config.rollout.rollout_batch,
        "images": config.rollout.decode_batch,
    }
    free = {"micro": parts, "rollout": sampled, "images": range(1, min(MOST_DECODED, most) + 1)}
    return {name: [given[name]] if given[name] else free[name] for name in free}


def _batches(candidates: Mapping[str, Sequence[int]], end: int) -> Batches:
    return Batches(**{name: values[end] for name, values in candidates.items()})


def _room(memory: RoleMemory, budget: int | None, on_gpu: bool) -> dict[str, float]:
    """Bytes available to each phase."""
    if budget is None:
        return dict(WITHOUT_BUDGET)
    left = usable(budget, on_gpu) - (memory.total - max(memory.phases.values()))
    return dict.fromkeys(memory.phases, left)


def _shortage(config: GrpoConfig, arch: ModelConfig, share: _Share, on_gpu: bool, budget: int, memory: RoleMemory) -> str:
    """What the smallest batches need, by component, and which flags would make them fit."""
    worst = max(memory.phases, key=lambda phase: memory.phases[phase])
    parts = [part for part in memory.components if part.phase in (ALWAYS, worst) and part.bytes > 0.01 * memory.total]
    listed = ", ".join(f"{part.name} {size(part.bytes)}" for part in sorted(parts, key=lambda part: -part.bytes))
    given = f"--memory-budget {config.memory_budget}" if config.memory_budget else f"a memory budget of {size(budget)}"
    owner = "the run" if share.name == "colocated" else f"a {share.name} worker"
    set_by_hand = [flag for name, flag in FLAGS.items() if name in share.fields and _given(config, name)]
    lowered = f"Lower {', '.join(set_by_hand)}. " if set_by_hand else ""
    return (
        f"{given} ({size(usable(budget, on_gpu))} without a reserve) cannot hold {owner}, even one trajectory at a time: "
        f"the phase {worst} needs {size(memory.total)} ({listed}). {lowered}"
        f"{_remedies(config, arch, share, on_gpu, budget)}"
    )


def _given(config: GrpoConfig, name: str) -> int:
    return len(_candidates(config, config.conditions)[name]) == 1


def _remedies(config: GrpoConfig, arch: ModelConfig, share: _Share, on_gpu: bool, budget: int) -> str:
    """What the process would need with each flag that saves memory, and with as many of them as it takes."""
    smaller = max(1, config.learner.lora_rank // 4)
    options: dict[str, Callable[[GrpoConfig], GrpoConfig]] = {}
    if not config.learner.recompute:
        options["--recompute"] = lambda c: _with(c, recompute=True)
    if on_gpu and config.learner.optimizer_device != "cpu":
        options["--optimizer-device cpu"] = lambda c: _with(c, optimizer_device="cpu")
    if config.precision == "fp32":
        options["--precision bf16"] = lambda c: dataclasses.replace(c, precision="bf16")
    options[f"--lora-rank {smaller}"] = lambda c: _with(c, lora_rank=smaller)
    needs = {flag: _least(change(config), arch, share, on_gpu) for flag, change in options.items()}
    together, room = config, usable(budget, on_gpu)
    for number, change in enumerate(options.values(), 1):
        together = change(together)
        need = _least(together, arch, share, on_gpu)
        if number > 1 and (need <= room or number == len(options)):
            needs[" ".join(list(options)[:number])] = need
            break
    listed = ", ".join(f"{size(need)} with {flags}" for flags, need in needs.items())
    if min(needs.values()) <= room:
        return f"It would need {listed}"
    return f"It would need {listed}: use a larger device, or --placement distributed"


def _least(config: GrpoConfig, arch: ModelConfig, share: _Share, on_gpu: bool) -> int:
    return _memory(config, arch, share, _batches(_candidates(config, share.conditions), 0), on_gpu, True).total

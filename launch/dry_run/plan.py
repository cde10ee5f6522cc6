"""The text of a dry run: what a GRPO run will be, take and last, before anything is started or written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import psutil
import torch

from launch.common.cpus import available_cpus
from launch.common.device import choose_device
from launch.common.text import duration, operations, parse_size, share, size, table
from launch.configs.cluster import ROLES, Role
from launch.configs.dry_run import PlanConfig
from launch.configs.grpo import GrpoConfig
from launch.configs.io import to_plain
from launch.dry_run.costs import NETWORK_BYTES_PER_S, Measurement, costs_from_flops
from launch.dry_run.inputs import find_inputs
from launch.dry_run.roles import Hardware, place, schedule_of, threads_of, with_rollout_workers
from launch.dry_run.simulate import Costs, Prediction, Schedule, serial, simulate
from launch.sizing.budget import choose, conditions_held, workload
from launch.sizing.flops import count_flops
from launch.sizing.memory import ALWAYS, MemoryPlan, RoleMemory, parameter_counts
from launch.sizing.peak import product_rate
from stylevar.yaml_files import yaml_text

HELPS = 1.05
"""Speed-up below which more workers no longer help."""
FULL = 0.95
"""Share of its time from which on a resource counts as used up."""


def plan(config: GrpoConfig) -> str:
    """The report. Raises UserError for anything that would keep the run from starting, as far as one process can see."""
    return "\n\n".join(Plan(config).sections())


@dataclass(frozen=True)
class _WhatIf:
    """The predicted step with some number of rollout workers."""

    workers: int
    schedule: Schedule
    prediction: Prediction


class Plan:
    """What is known of a run before it is started. Its costs are measured when they are first asked for."""

    def __init__(self, config: GrpoConfig) -> None:
        process = psutil.Process().memory_info().rss  # before the model: what every process holds
        device = choose_device(config.device)
        gpus = torch.cuda.device_count() if device.type == "cuda" else 0
        own_devices = gpus > 0 or config.plan.device_tflops is not None
        self.device = device
        self.hardware = Hardware(available_cpus(), gpus, own_devices)
        self.process = 0 if own_devices else process
        self.inputs = inputs = find_inputs(config)
        # Devices of their own are taken for GPUs.
        self.choice = choose(config, inputs.arch, self._budgets(config), own_devices)
        self.config = config = self.choice.config
        tokens_known = inputs.sets is not None and inputs.sets.sets["train"].has_tokens
        self.work = workload(config, inputs.arch, own_devices, tokens_known)
        self.flops = count_flops(self.work)
        self.parameters = parameter_counts(self.work)
        self.measurement: Measurement | None = None
        self.product_tflops: float | None = None
        self.known: dict[tuple[int, ...], Costs] = {}

    def sections(self) -> list[str]:
        assumptions = [self._assumptions()] if self.inputs.assumed else []
        parts = [self._config(), *assumptions, self._placement(), self._memory(), self._flops(), self._time()]
        return [*parts, self._what_if()] if self.config.plan.what_if else parts

    @property
    def colocated(self) -> bool:
        return self.config.cluster.placement == "colocated"

    @property
    def unit(self) -> int:
        """Conditions that are sampled at once."""
        conditions = self.config.conditions
        return min(conditions, self.config.rollout.at_once(conditions)) if self.colocated else self._largest(self.config)

    def _budgets(self, config: GrpoConfig) -> dict[Role, int | None]:
        """Bytes that a process of each role may take; on CPUs, as in the run, only what --memory-budget says."""
        if config.memory_budget is not None:
            return dict.fromkeys(ROLES, parse_size(config.memory_budget))
        there = self._device_memory(config)
        if there is None or not self.hardware.own_devices:
            return dict.fromkeys(ROLES)
        shares = {actor.name: min(1.0, actor.gpus) for actor in place(config, self.hardware)}
        return {role: int(there * shares.get(role, 1.0)) for role in ROLES}

    def _device_memory(self, config: GrpoConfig) -> float | None:
        """Bytes of a device, if they are known."""
        if config.plan.device_memory_gb is not None:
            return config.plan.device_memory_gb * 1e9
        return torch.cuda.get_device_properties(0).total_memory if self.hardware.gpus else None

    def _largest(self, config: GrpoConfig) -> int:
        return max(max(minibatch) for minibatch in schedule_of(config, self.hardware).units)

    def _config(self) -> str:
        run = dataclasses.replace(self.config, plan=PlanConfig())  # what is asked of the plan is no part of the run
        return "config\n" + yaml_text(to_plain(run)).rstrip()

    def _assumptions(self) -> str:
        lines = [f"  {line}" for line in self.inputs.assumed]
        return "\n".join(["assumed for files that are missing (a run needs them)", *lines])

    def _placement(self) -> str:
        rows = [
            (a.name, str(a.count), f"{a.cpus:.3g}", f"{a.gpus:.3g}", "" if self.hardware.own_devices else str(a.threads))
            for a in place(self.config, self.hardware)
        ]
        machine = f"{self.hardware.cpus} CPUs and {self.hardware.gpus} GPUs"
        return f"placement on a machine with {machine}; each actor asks for\n" + table(
            ("actor", "count", "CPUs", "GPUs", "threads"), rows
        )

    def _roles(self) -> dict[str, RoleMemory]:
        config = self.config
        if self.colocated:
            return {"colocated": MemoryPlan(self.work, config.conditions, self.process).colocated()}
        memory, held = MemoryPlan(self.work, self.unit, self.process), conditions_held(config)
        return {"rollout": memory.rollout(), "reward": memory.reward_worker(), "learner": memory.learner(held)}

    def _memory(self) -> str:
        roles = self._roles()
        names = list(dict.fromkeys((part.name, part.phase) for role in roles.values() for part in role.components))
        sizes = [{(part.name, part.phase): size(part.bytes) for part in role.components} for role in roles.values()]
        names.sort(key=lambda name: name[1] != ALWAYS)
        rows = [(*name, *(column.get(name, "") for column in sizes)) for name in names]
        rows.append(("total", "at most", *(size(role.total) for role in roles.values())))
        counted = ", ".join(f"{n} {count:,}" for n, count in self.parameters.items())
        chosen = ", ".join(f"{name} {value}" for name, value in self.choice.facts().items())
        head = (
            "memory of each actor: what is always there, and of the phases the largest\n"
            f"parameters: {counted}\ncomputed at once: {chosen}"
        )
        shortage = [] if self.choice.shortage is None else [f"  {self.choice.shortage}"]
        components = table(("component", "when", *roles), rows, text_columns=2)
        return "\n".join([head, components, *self._against_device(roles), *shortage])

    def _against_device(self, roles: dict[str, RoleMemory]) -> list[str]:
        given = self.config.plan.device_memory_gb
        actors = place(self.config, self.hardware)
        if not self.hardware.own_devices:
            there = psutil.virtual_memory().total if given is None else given * 1e9
            used = sum(actor.count * roles[actor.name].total for actor in actors)
            return [_fit("all actors", used, there, "memory")]
        if self.config.memory_budget is not None:
            budget = parse_size(self.config.memory_budget)
            return [_fit(name, role.total, budget, "its --memory-budget") for name, role in roles.items()]
        memory = self._device_memory(self.config)
        if memory is None:
            return ["  give --device-memory-gb to compare this with a device"]
        shares = {actor.name: min(1.0, actor.gpus) for actor in actors}
        return [_fit(name, role.total, shares[name] * memory, "its device") for name, role in roles.items()]

    def _flops(self) -> str:
        config, group = self.config, self.config.rollout.group
        passes, steps = config.learner.updates_per_rollout, config.learner.updates_per_rollout * config.learner.minibatches
        copies = 1 if self.colocated else 2
        each = self.flops.per_trajectory(group)
        step = self.flops.per_step(config.conditions, group, passes, steps, copies)
        rows = [(phase, operations(each[phase]) if phase in each else "", operations(step[phase])) for phase in step]
        rows.append(("total", operations(sum(each.values())), operations(sum(step.values()))))
        head = f"FLOPs (2 x multiply-adds) at {group} trajectories per condition, {config.conditions} conditions per step"
        return f"{head}\n" + table(("phase", "per trajectory", "per step"), rows)

    def _costs(self, config: GrpoConfig, unit: int) -> Costs:
        """Costs for tasks of `unit` conditions, and the threads that actors get; measured once for each."""
        tflops = config.plan.device_tflops
        if tflops is not None:
            return costs_from_flops(self.flops, config, self.parameters["adapters"], tflops)
        threads = threads_of(config, self.hardware)
        key = (unit, *threads.values())
        if key not in self.known:
            self.known[key] = self._measured(config, unit, threads)
        return self.known[key]

    def _measured(self, config: GrpoConfig, unit: int, threads: Mapping[Role, int]) -> Costs:
        """Of the run itself, or where some of its files are missing from the speed of matrix products alone."""
        inputs = self.inputs
        if inputs.model is not None and inputs.sets is not None and inputs.reward:
            if self.measurement is None:
                self.measurement = Measurement(config, inputs.model, inputs.sets, self.flops, self.device)
            return self.measurement.costs(unit, threads)
        rate = product_rate(self.device, config.precision, min(threads.values()))
        self.product_tflops = rate / 1e12
        return costs_from_flops(self.flops, config, self.parameters["adapters"], self.product_tflops)

    def predict(self, config: GrpoConfig) -> tuple[Schedule, Costs, Prediction]:
        """The schedule of `config`, which may be placed otherwise than the plan's own, what its parts cost, and its step."""
        schedule = schedule_of(config, self.hardware)
        if config.cluster.placement == "colocated":
            costs = self._costs(config, self.unit)
            return schedule, costs, serial(schedule, costs)
        costs = self._costs(config, self._largest(config))
        return schedule, costs, simulate(schedule, costs)

    def _source(self, unit: int) -> str:
        tflops = self.config.plan.device_tflops
        network = f"{NETWORK_BYTES_PER_S / 1e9:g} GB/s between processes"
        if self.product_tflops is not None:
            speed = f"{self.product_tflops:.3g} TFLOP/s, which matrix products reach here (a run takes longer)"
            return f"costs from FLOPs at {speed}, and {network}"
        if self.measurement is None:
            return f"costs from FLOPs at {tflops:g} TFLOP/s on each device, and {network}"
        conditions, group = self.measurement.amount(unit)
        return f"costs measured here on {conditions} x {group} trajectories (conditions x group), and {network}"

    def _time(self) -> str:
        config = self.config
        _, costs, prediction = self.predict(config)
        trajectories, seconds = config.conditions * config.rollout.group, prediction.step_seconds
        parts = [
            ("read", costs.read, "condition"),
            ("encode", costs.encode, "condition"),
            ("sample and decode", costs.sample, "condition"),
            ("score", costs.score, "condition"),
            ("reference", costs.reference, "condition"),
            ("forward and backward", costs.update, "condition"),
            ("optimizer and merge", costs.optimizer, "optimizer step"),
        ]
        if not self.colocated:
            parts += [("load adapters", costs.sync, "version"), ("average gradients", costs.reduce, "optimizer step")]
        rows = [(name, duration(value), f"per {per}") for name, value, per in parts]
        result = [
            ("step", duration(seconds)),
            ("trajectories/s", f"{trajectories / seconds:.3g}"),
            *((f"{role} busy", share(prediction.utilisation[role])) for role in ROLES),
            *([] if prediction.cores is None else [("cores busy", share(prediction.cores))]),
            *self._epoch(seconds),
            (f"{config.steps} steps", f"{duration(config.steps * seconds)}, without scoring held-out conditions"),
        ]
        heading = f"expected time: {self._source(self.unit)}"
        return "\n".join([heading, table(("cost", "", ""), rows, 3), table(("prediction", ""), result, 2)])

    def _epoch(self, step_seconds: float) -> list[tuple[str, str]]:
        if self.inputs.sets is None:
            return [("steps per epoch", "unknown without shards")]
        triplets = self.inputs.sets.sizes()["train"]
        steps = triplets / self.config.conditions
        return [("steps per epoch", f"{steps:.4g} ({triplets:,} conditions)"), ("epoch", duration(steps * step_seconds))]

    def _what_if(self) -> str:
        cases = []
        for workers in sorted(set(self.config.plan.what_if)):
            schedule, _, prediction = self.predict(with_rollout_workers(self.config, workers))
            cases.append(_WhatIf(workers, schedule, prediction))
        trajectories = self.config.conditions * self.config.rollout.group
        first = cases[0].prediction.step_seconds
        on_cores = cases[0].prediction.cores is not None
        rows = []
        for case in cases:
            p = case.prediction
            busy = [share(p.utilisation[role]) for role in ROLES] + ([share(p.cores)] if p.cores is not None else [])
            rate = f"{trajectories / p.step_seconds:.3g}"
            units = str(case.schedule.count)
            rows.append((str(case.workers), units, duration(p.step_seconds), rate, *busy, f"{first / p.step_seconds:.2f}"))
        cluster = self.config.cluster
        head = (
            f"what if: other numbers of rollout workers, with reward workers {cluster.reward_workers}, "
            f"learners {cluster.learners}, staleness {cluster.max_staleness}"
        )
        names = [*ROLES, *(["cores"] if on_cores else [])]
        header = ("workers", "units", "step", "trajectories/s", *(f"{name} busy" for name in names), "speed-up")
        return "\n".join([head, table(header, rows, 0), _verdict(cases)])


def _fit(what: str, used: float, there: float, device: str) -> str:
    line = f"  {what}: {size(used)} of {size(there)} of {device}, {share(used / there)}"
    if used > there:
        line += (
            ": too much. Give --memory-budget, --recompute or --optimizer-device cpu, lower --rollout-batch, "
            "--micro-batch or --reward-batch, or place fewer actors there"
        )
    return line


def _verdict(cases: list[_WhatIf]) -> str:
    """From which number on more rollout workers stop helping, and what then limits a step."""
    for number, case in enumerate(cases[:-1]):
        seconds = case.prediction.step_seconds
        if all(seconds < HELPS * later.prediction.step_seconds for later in cases[number + 1 :]):
            return f"With more than {_workers(case)} a step gains less than {share(HELPS - 1)}: {_limit(case)}."
    last = cases[-1]
    return f"Up to {_workers(last)} the step still gets faster: {_limit(last)}."


def _workers(case: _WhatIf) -> str:
    return f"{case.workers} rollout worker{'' if case.workers == 1 else 's'}"


def _limit(case: _WhatIf) -> str:
    prediction = case.prediction
    if prediction.cores is not None and prediction.cores >= FULL:
        return f"the machine's {case.schedule.cores:g} cores are the bottleneck, {share(prediction.cores)} busy"
    busiest: Role = prediction.busiest
    found = f"the {busiest} role is the bottleneck, {share(prediction.utilisation[busiest])} busy"
    if case.workers >= case.schedule.count:
        found += f" (a step has only {case.schedule.count} units to hand out)"
    return found

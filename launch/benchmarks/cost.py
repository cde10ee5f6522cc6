"""How time and memory grow with the size of a step and of the model: `python launch/bench.py cost`.

Four quantities are varied, one at a time: conditions, group, depth, and image size. FLOPs and memory are counted on the meta
device, so a model of any size takes seconds. Steps that are short enough are measured as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace

import torch

from launch.benchmarks.config import Cost
from launch.benchmarks.cost_plot import draw
from launch.benchmarks.cost_result import AXES, Case, CostResult, Point
from launch.benchmarks.fits import largest
from launch.benchmarks.step import RandomRewards, build_policy, run_steps, use_threads
from launch.common.device import choose_device
from launch.configs.cluster import ROLES
from launch.configs.grpo import GrpoConfig
from launch.configs.shape import ModelShape, sides_up_to
from launch.rl.colocated import ColocatedWorker
from launch.sizing.budget import choose, workload
from launch.sizing.flops import count_flops
from launch.sizing.memory import MemoryPlan
from reward.config import RewardConfig
from stylevar.errors import UserError


def run(bench: Cost) -> None:
    """Predict and measure, print the result, and draw it with --plot."""
    result = measure(bench)
    if bench.plot is not None:
        draw(result, AXES, bench.plot)
    print(json.dumps(asdict(result)) if bench.json else result.text())


def measure(bench: Cost) -> CostResult:
    """Predict every case, and measure the short ones. UserError for an image size that the model cannot have."""
    use_threads(bench.threads)
    device = choose_device(bench.device)
    base = Case(bench.conditions, bench.rollout.group, bench.model.depth, bench.model.model_config().image_size)
    planned = list(cases(bench, base))
    for _, case in planned:
        shape_of(bench, case)  # refuses impossible sizes before any time is spent
    rate = None
    if bench.measure_below:
        # Twice, because the first steps of a process are slower.
        rate = predict(bench, base, device)[0] / min(time_step(bench, base, device) for _ in range(2))
    known: dict[Case, Point] = {}
    points = []
    for axis, case in planned:
        point = known.get(case)
        if point is None:
            flops, memory = predict(bench, case, device)
            short = rate is not None and flops / rate <= bench.measure_below
            point = Point(axis, case, flops, memory, time_step(bench, case, device) if short else None)
        known[case] = point
        points.append(replace(point, axis=axis))
    fits = tuple(largest(card) for card in bench.cards)
    return CostResult(str(device), torch.get_num_threads(), rate, tuple(points), fits)


def cases(bench: Cost, base: Case) -> Iterator[tuple[str, Case]]:
    """Yield every axis with its cases, smallest first."""
    for axis in AXES:
        for value in sorted({getattr(base, axis), *getattr(bench, f"vary_{axis}")}):
            yield axis, replace(base, **{axis: value})


def shape_of(bench: Cost, case: Case) -> ModelShape:
    """The base model with the depth and the image size of a case."""
    cell = 2 ** (len(bench.model.ch_mult) - 1)
    if case.image_size % cell:
        raise UserError(f"--vary-image-size {case.image_size}: must be a multiple of {cell}, the side of a token in pixels")
    side = case.image_size // cell
    scales = bench.model.patch_nums if side == bench.model.patch_nums[-1] else sides_up_to(side)
    return replace(bench.model, depth=case.depth, patch_nums=scales)


def predict(bench: Cost, case: Case, device: torch.device) -> tuple[float, int]:
    """FLOPs and peak bytes of a step."""
    on_gpu = device.type == "cuda"
    arch = shape_of(bench, case).model_config()
    config = choose(_config(bench, case), arch, dict.fromkeys(ROLES), on_gpu).config
    work = workload(config, arch, on_gpu)
    passes = config.learner.updates_per_rollout
    flops = count_flops(work).per_step(case.conditions, case.group, passes, passes * config.learner.minibatches)
    memory = MemoryPlan(work, case.conditions).colocated().total
    return sum(count for phase, count in flops.items() if phase != "reward"), memory


def time_step(bench: Cost, case: Case, device: torch.device) -> float:
    """Median seconds of a step on random weights and images."""
    config, worker = _config(bench, case), ColocatedWorker()
    worker.assemble(config, build_policy(config, shape_of(bench, case), device), RandomRewards())
    return run_steps(worker, bench.effort).seconds


def _config(bench: Cost, case: Case) -> GrpoConfig:
    rollout = replace(bench.rollout, group=case.group)
    free = RewardConfig("psnr")  # no network, so it takes no memory
    return GrpoConfig(conditions=case.conditions, rollout=rollout, learner=bench.learner, reward=free, device=bench.device)

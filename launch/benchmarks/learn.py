"""How much different methods or settings of GRPO learn in equal time: `python launch/bench.py learn`."""

from __future__ import annotations

import json
import math
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any

import ray

from data.patterns import expand_shards
from data.shards import TripletShards
from launch.benchmarks.config import Learn
from launch.benchmarks.gains import FinishedRun, Learned, markdown, summarise, to_json
from launch.benchmarks.learn_plot import draw
from launch.benchmarks.variants import Variant, read_variants
from launch.cluster.start import start_worker
from launch.common.commands import lasting, loss_warning
from launch.common.stop import StopRequest
from launch.common.text import duration
from launch.configs.grpo import PROGRAM, GrpoConfig, load_config
from launch.configs.io import to_plain
from launch.rl.run import execute, report
from launch.run.resume import NothingLeft, check_steps
from launch.run.run_folder import find_resume, finished_at, flat
from launch.run.run_lock import only_writer
from launch.run.saving import saving
from stylevar.atomic import file_aside
from stylevar.errors import UserError
from stylevar.text import check_path
from stylevar.text_files import read_record

WARM_UP, TIMED = 1, 5
"""Steps that are run to see how long one takes, and then thrown away. The first is not timed."""


@dataclass(frozen=True)
class Plan:
    """What the runs of a variant share. `expected`: seconds that their steps should take; None if no step was timed."""

    name: str
    flags: str
    config: GrpoConfig
    expected: float | None

    def with_seed(self, seed: int) -> GrpoConfig:
        """The settings of one run."""
        return replace(self.config, name=f"{self.name}-seed{seed}", seed=seed)


def run(bench: Learn) -> None:
    """Plan all variants, train them one after the other, and write the results after every run."""
    if (warning := loss_warning(bench.out)) is not None:
        print(warning, file=sys.stderr)
    check_path(bench.out, "--out", utf8=True)
    variants = read_variants(bench.variants)
    for variant in variants:
        for patterns in variant.config.condition_patterns().values():
            expand_shards(patterns)
    plans = [_plan(bench, variant) for variant in variants]
    # Seed by seed: a slow hour of the machine then hits all variants, and there is a first comparison early.
    runs = [(plan, seed) for seed in bench.seeds for plan in plans]
    for number, (plan, seed) in enumerate(runs, 1):
        print(f"run {number} of {len(runs)}: {plan.name}, seed {seed}, {plan.config.steps} steps", flush=True)
        if train(plan.with_seed(seed)) or number == len(runs):
            text = _write(bench, [summary for p in plans if (summary := _summary(bench, p, plans[0])) is not None])
    print(text)
    print(f"table and picture: {lasting(bench.out)}/learn.md, learn.json, learn.png")


def _plan(bench: Learn, variant: Variant) -> Plan:
    """The variant's plan, which stays once a run has begun, so that all seeds have the same number of steps."""
    file = bench.out / "plans" / f"{variant.name}.json"
    usual = replace(variant.config, runs=bench.out / "runs", name=variant.name)
    asked = _asked(bench, variant)
    kept = _kept(bench, file, variant.name, asked)
    if kept is None:
        steps, step_seconds = _steps(bench, variant, usual)
        kept = {"asked": asked, "steps": steps, "step_seconds": step_seconds}
        write(file, json.dumps(kept, indent=2) + "\n")
    steps, step_seconds = kept["steps"], kept["step_seconds"]
    count = bench.eval_conditions or len(TripletShards(expand_shards(usual.heldout)))
    monitor = replace(
        usual.monitor, eval_every=math.ceil(steps / bench.points), eval_conditions=count, eval_group=bench.eval_group
    )
    expected = None if step_seconds is None else steps * step_seconds
    return Plan(variant.name, variant.flags, replace(usual, steps=steps, monitor=monitor), expected)


def _kept(bench: Learn, file: Path, name: str, asked: dict[str, Any]) -> dict[str, Any] | None:
    """The plan in `file`. None if there is none, or if it is for other settings and no run has begun with it.

    Raises UserError if runs have begun with other settings.
    """
    if not file.is_file():
        return None
    kept = read_record(file, "remove it", asked=dict, steps=int, step_seconds=(int, float, NoneType))
    settings = dict.fromkeys([*asked, *kept["asked"]])
    changed = [s for s in settings if s not in asked or kept["asked"].get(s) != asked[s]]
    if not changed:
        return kept
    if not any((bench.out / "runs").glob(f"{name}-seed*/config.yaml")):
        return None
    said = ", ".join(setting.removeprefix("settings.") for setting in changed)
    raise UserError(
        f"{file}: the runs of {name} have begun with other settings ({said}): choose another --out, or rename the variant"
    )


def _asked(bench: Learn, variant: Variant) -> dict[str, Any]:
    """All settings that the variant's runs depend on. Their folder is not one of them, so that it can be moved."""
    settings = to_plain(replace(variant.config.absolute(), runs=Path(), name=variant.name))
    budget = {} if variant.has_steps else {"seconds": bench.seconds, "trajectories": bench.trajectories}
    scored = {"points": bench.points, "eval_conditions": bench.eval_conditions, "eval_group": bench.eval_group}
    return flat({"settings": settings, **budget, **scored})


def _steps(bench: Learn, variant: Variant, config: GrpoConfig) -> tuple[int, float | None]:
    """The number of steps per run, and the seconds of one step if it had to be timed."""
    if variant.has_steps:
        return config.steps, None
    step_seconds = None
    if bench.seconds:
        print(f"timing a step of {variant.name}", flush=True)
        step_seconds = time_step(config)
    return steps_within(variant, bench.seconds, bench.trajectories, step_seconds), step_seconds


def _summary(bench: Learn, plan: Plan, first: Plan) -> Learned | None:
    """What a variant has learned in its finished runs; None if there are none."""
    runs, reference = _finished(bench, plan), {} if plan is first else _finished(bench, first)
    return summarise(plan.name, plan.flags, plan.expected, runs, reference) if runs else None


def _finished(bench: Learn, plan: Plan) -> dict[int, FinishedRun]:
    """The variant's finished runs by seed."""
    configs = {seed: plan.with_seed(seed) for seed in bench.seeds}
    paths = {seed: config.runs / config.name for seed, config in configs.items()}
    return {seed: FinishedRun.read(path) for seed, path in paths.items() if finished_at(path) == plan.config.steps}


def _write(bench: Learn, variants: list[Learned]) -> str:
    """Table and picture; returns the table."""
    text = markdown(variants)
    write(bench.out / "learn.md", text)
    write(bench.out / "learn.json", to_json(variants))
    draw(variants, bench.out / "learn.png")
    return text


def steps_within(variant: Variant, seconds: float, trajectories: int, step_seconds: float | None) -> int:
    """The most steps within both limits, where 0 means no limit. UserError if there is no limit, or not one step fits."""
    config = variant.config
    each = config.conditions * config.rollout.group
    limits = [int(seconds / step_seconds)] if seconds and step_seconds else []
    limits += [trajectories // each] if trajectories else []
    if not limits:
        raise UserError(f"{variant.name} has no end: give --seconds or --trajectories, or the variant its own --steps")
    if min(limits) < 1:
        taken = "" if step_seconds is None else f"{duration(step_seconds)} and "
        raise UserError(
            f"--seconds {seconds:g} --trajectories {trajectories}: give more, since one step of {variant.name} takes "
            f"{taken}{each} trajectories"
        )
    return min(limits)


def time_step(config: GrpoConfig) -> float:
    """Median seconds of a few steps, of which nothing is kept."""
    worker = start_worker(config, StopRequest())
    try:
        worker.setup(config, None)
        seconds = [worker.step(step).metrics["time/step"] for step in range(WARM_UP + TIMED)]
    finally:
        worker.close()
        ray.shutdown()
    return statistics.median(seconds[WARM_UP:])


def train(config: GrpoConfig) -> bool:
    """Train a run to its end; False if it was finished already. Exits with 130 if a signal ended it early, as `grpo.py`."""
    path = config.runs / config.name
    point = find_resume("auto", config.runs, config.name)
    if point is not None:
        config = replace(load_config(path / "config.yaml"), name=config.name, runs=config.runs)
        try:
            check_steps(point, config.steps)
        except NothingLeft:
            return False
    stop = StopRequest()
    with only_writer(path):
        try:
            run = execute(config, point, start_worker(config, stop), stop)
        except SystemExit:
            print("or repeat the command of the comparison, which continues this run and does those that are left")
            raise
        finally:
            ray.shutdown()
        with saving(run, PROGRAM):
            report(config, run)
    return True


def write(path: Path, text: str) -> None:
    """Write a file, whole or not at all, and make its folder. UserError if that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_aside(path) as aside:
            aside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): choose another --out") from error

"""How much is learned in equal time: `python launch/bench.py learn`, for methods of credit or any settings of GRPO."""

from __future__ import annotations

import json
import math
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import ray
from annotated_types import Ge

from data.shards import TripletShards, expand_shards
from launch.benchmarks.gains import FinishedRun, Learned, markdown, summarise, to_json
from launch.benchmarks.learn_plot import draw
from launch.benchmarks.variants import Variant, read_variants
from launch.cluster.start import start_worker
from launch.common.commands import lasting, loss_warning
from launch.common.stop import StopRequest
from launch.common.text import duration
from launch.configs.grpo import GrpoConfig, load_config
from launch.configs.io import to_plain
from launch.rl.run import PROGRAM, execute, report
from launch.run.resume import NothingLeft, check_steps
from launch.run.run_folder import find_resume, finished_at, flat
from launch.run.run_lock import only_writer
from launch.run.saving import saving
from stylevar.atomic import file_aside
from stylevar.bounds import check_bounds
from stylevar.errors import UserError
from stylevar.text import check_path

WARM_UP, TIMED = 1, 3
"""Steps that are done to learn how long one takes, and thrown away."""


@dataclass(frozen=True)
class Plan:
    """What the runs of a variant share. `expected` are the training seconds of one, if they were to be foreseen."""

    name: str
    flags: str
    config: GrpoConfig
    expected: float | None

    def run(self, seed: int) -> GrpoConfig:
        """The settings of the run with this seed."""
        return replace(self.config, name=f"{self.name}-seed{seed}", seed=seed)


@dataclass(frozen=True)
class Learn:
    """Held-out gain of several variants of GRPO after equal training time, over several seeds."""

    variants: tuple[str, ...] = ("trajectory", "gradient")
    """What is compared: methods of --credit, or a name and flags of launch/grpo.py, as "slow: --credit gradient --lr 1e-4".
    "all: FLAGS" is for flags that all variants share."""
    out: Path = Path("runs/learn")
    """Folder of runs and results. The same command goes on where it was interrupted; finished runs are not repeated."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Every variant is trained once with each of them."""
    seconds: Annotated[float, Ge(0)] = 300.0
    """Training time of each run, without held-out scoring; 0 for no bound. Becomes a number of steps, by timing a few."""
    trajectories: Annotated[int, Ge(0)] = 0
    """The most trajectories that a run samples to learn from; 0 for no bound."""
    points: Annotated[int, Ge(1)] = 4
    """Scorings of the held-out conditions in each run after the one at the start, evenly spread."""
    eval_conditions: Annotated[int, Ge(0)] = 0
    """Held-out conditions that are scored while a run goes; 0 for all. At its start and its end all are."""
    eval_group: Annotated[int, Ge(1)] = 4
    """Samples per held-out condition."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"--seeds {' '.join(map(str, self.seeds))}: give one or more, each once")

    def run(self) -> None:
        """Plan all variants, train them one after the other, and write the results after every run."""
        if (warning := loss_warning(self.out)) is not None:
            print(warning, file=sys.stderr)
        check_path(self.out, "--out", utf8=True)
        variants = read_variants(self.variants)
        for variant in variants:
            for patterns in variant.config.condition_patterns().values():
                expand_shards(patterns)
        plans = [self._plan(variant) for variant in variants]
        # Seed by seed, so that a machine that slows down does so to all variants, and a comparison is there early.
        runs = [(plan, seed) for seed in self.seeds for plan in plans]
        for number, (plan, seed) in enumerate(runs, 1):
            print(f"run {number} of {len(runs)}: {plan.name}, seed {seed}, {plan.config.steps} steps", flush=True)
            if train(plan.run(seed)) or number == len(runs):
                text = self._write([summary for p in plans if (summary := self._summary(p, plans[0])) is not None])
        print(text)
        print(f"table and picture: {lasting(self.out)}/learn.md, learn.json, learn.png")

    def _plan(self, variant: Variant) -> Plan:
        """The variant's plan. Once a run has begun, it stays: all seeds have the same number of steps."""
        file = self.out / "plans" / f"{variant.name}.json"
        usual = replace(variant.config, runs=self.out / "runs", name=variant.name)
        asked = self._asked(variant)
        kept = self._kept(file, variant.name, asked)
        if kept is None:
            steps, step_seconds = self._steps(variant, usual)
            kept = {"asked": asked, "steps": steps, "step_seconds": step_seconds}
            write(file, json.dumps(kept, indent=2) + "\n")
        steps, step_seconds = kept["steps"], kept["step_seconds"]
        count = self.eval_conditions or len(TripletShards(expand_shards(usual.heldout)))
        monitor = replace(
            usual.monitor, eval_every=math.ceil(steps / self.points), eval_conditions=count, eval_group=self.eval_group
        )
        expected = None if step_seconds is None else steps * step_seconds
        return Plan(variant.name, variant.flags, replace(usual, steps=steps, monitor=monitor), expected)

    def _kept(self, file: Path, name: str, asked: dict[str, Any]) -> dict[str, Any] | None:
        """The plan in `file`; None if there is none, or one of other settings by which no run was begun.

        Raises UserError if runs were begun with other settings.
        """
        if not file.is_file():
            return None
        kept = json.loads(file.read_text())
        settings = dict.fromkeys([*asked, *kept["asked"]])
        changed = [s for s in settings if s not in asked or kept["asked"].get(s) != asked[s]]
        if not changed:
            return kept
        if not any((self.out / "runs").glob(f"{name}-seed*/config.yaml")):
            return None
        said = ", ".join(setting.removeprefix("settings.") for setting in changed)
        raise UserError(
            f"{file}: the runs of {name} were begun with another {said}: choose another --out, or give the variant another "
            "name"
        )

    def _asked(self, variant: Variant) -> dict[str, Any]:
        """All settings that make a run of the variant what it is; where it lies is none of them."""
        settings = to_plain(replace(variant.config.absolute(), runs=Path(), name=variant.name))
        budget = {} if variant.has_steps else {"seconds": self.seconds, "trajectories": self.trajectories}
        scored = {"points": self.points, "eval_conditions": self.eval_conditions, "eval_group": self.eval_group}
        return flat({"settings": settings, **budget, **scored})

    def _steps(self, variant: Variant, config: GrpoConfig) -> tuple[int, float | None]:
        """How many steps a run has; and the seconds of one, where the time is what bounds them."""
        if variant.has_steps:
            return config.steps, None
        step_seconds = None
        if self.seconds:
            print(f"timing a step of {variant.name}", flush=True)
            step_seconds = time_step(config)
        return steps_within(variant, self.seconds, self.trajectories, step_seconds), step_seconds

    def _summary(self, plan: Plan, first: Plan) -> Learned | None:
        """What a variant has learned in its finished runs; None without any."""
        runs, reference = self._finished(plan), {} if plan is first else self._finished(first)
        return summarise(plan.name, plan.flags, plan.expected, runs, reference) if runs else None

    def _finished(self, plan: Plan) -> dict[int, FinishedRun]:
        """By seed."""
        configs = {seed: plan.run(seed) for seed in self.seeds}
        paths = {seed: config.runs / config.name for seed, config in configs.items()}
        return {seed: FinishedRun.read(path) for seed, path in paths.items() if finished_at(path) == plan.config.steps}

    def _write(self, variants: list[Learned]) -> str:
        """Table and picture; returns the table."""
        text = markdown(variants)
        write(self.out / "learn.md", text)
        write(self.out / "learn.json", to_json(variants))
        draw(variants, self.out / "learn.png")
        return text


def steps_within(variant: Variant, seconds: float, trajectories: int, step_seconds: float | None) -> int:
    """The most steps that fit both bounds, of which 0 is none. UserError if there is no bound, or not one step fits."""
    config = variant.config
    each = config.conditions * config.rollout.group
    bounds = [int(seconds / step_seconds)] if seconds and step_seconds else []
    bounds += [trajectories // each] if trajectories else []
    if not bounds:
        raise UserError(f"{variant.name} has no end: give --seconds or --trajectories, or the variant its own --steps")
    if min(bounds) < 1:
        taken = "" if step_seconds is None else f"{duration(step_seconds)} and "
        raise UserError(
            f"--seconds {seconds:g} --trajectories {trajectories}: give more, since one step of {variant.name} takes "
            f"{taken}{each} trajectories"
        )
    return min(bounds)


def time_step(config: GrpoConfig) -> float:
    """Seconds of a step, the median of a few. Nothing of them is kept."""
    worker = start_worker(config, StopRequest())
    try:
        worker.setup(config, None)
        seconds = [worker.step(step).metrics["time/step"] for step in range(WARM_UP + TIMED)]
    finally:
        worker.close()
        ray.shutdown()
    return statistics.median(seconds[WARM_UP:])


def train(config: GrpoConfig) -> bool:
    """Do what is left of a run; False if that is nothing. Exits with 130 if a signal ended it early, as `grpo.py` does."""
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
            print("or repeat the command of the comparison, which does this first and then what is left")
            raise
        finally:
            ray.shutdown()
        with saving(run, PROGRAM):
            report(config, run)
    return True


def write(path: Path, text: str) -> None:
    """A file that appears whole or not at all, and its folder. UserError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_aside(path) as aside:
            aside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): choose another --out") from error

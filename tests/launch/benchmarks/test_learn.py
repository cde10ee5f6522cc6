"""A comparison of variants: what is compared, for how long, how it goes on after an interruption, and what it says."""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from grpo_files import write_inputs
from PIL import Image
from program import exit_code

from launch import bench
from launch.benchmarks import learn
from launch.benchmarks.config import Learn
from launch.benchmarks.gains import Gain, Learned, Point, markdown
from launch.benchmarks.learn import steps_within, time_step
from launch.benchmarks.learn_plot import figure
from launch.benchmarks.variants import read_variants
from launch.configs.grpo import demo
from launch.rl.colocated import ColocatedWorker
from stylevar.errors import UserError


@dataclass
class Comparison:
    """A comparison that was interrupted in its second run, and the runs that each of three commands began."""

    asked: Learn
    begun: list[list[str]]
    variants_after_interruption: list[str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Iterator[Comparison]:
    inputs = write_inputs(tmp_path_factory.mktemp("inputs"))
    small = ["--init", inputs / "sft", "--vae", inputs / "sft", "--shards", inputs / "train-*.tar", "--novel"]
    small += ["--heldout", inputs / "heldout-*.tar", "--conditions", 2, "--group", 2, "--lora-rank", 2]
    small += ["--threads", 1, "--device", "cpu", "--image-conditions", 1]
    shared = f"all: {shlex.join(map(str, small))}"
    out = tmp_path_factory.mktemp("my runs") / "learn"
    asked = Learn((shared, "slow: --steps 4", "fast: --steps 4 --lr 0.05"), out, seeds=(0, 1), points=2, eval_group=2)
    begun: list[list[str]] = [[]]

    class Interrupted(ColocatedWorker):
        """Receives Ctrl-C in a step of the comparison's second run."""

        def step(self, step: int):
            if begun == [["slow-seed0", "fast-seed0"]] and step == 1:
                os.kill(os.getpid(), signal.SIGINT)
            return super().step(step)

    def start(config, stop):
        begun[-1].append(config.name)
        return Interrupted()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learn, "start_worker", start)
        with pytest.raises(SystemExit) as stopped:
            learn.run(asked)
        assert stopped.value.code == 130
        known = [variant["name"] for variant in json.loads((out / "learn.json").read_text())["variants"]]
        for _ in range(2):
            begun.append([])
            learn.run(asked)
        yield Comparison(asked, begun, known)


def test_the_same_command_goes_on_and_repeats_nothing(finished):
    assert finished.begun == [["slow-seed0", "fast-seed0"], ["fast-seed0", "slow-seed1", "fast-seed1"], []]
    assert finished.variants_after_interruption == ["slow"]


def rewards(run: Path, step: int) -> np.ndarray:
    return np.array(json.loads((run / "heldout" / f"heldout_{step:08d}.json").read_text())["rewards"]).mean(1)


def test_gains_are_those_that_the_runs_have_kept(finished):
    out = finished.asked.out
    slow, fast = json.loads((out / "learn.json").read_text())["variants"]
    assert [(v["name"], v["seeds"], v["lead"] is None) for v in (slow, fast)] == [
        ("slow", [0, 1], True),
        ("fast", [0, 1], False),
    ]
    assert [(point["steps"], point["trajectories"]) for point in fast["points"]] == [(2, 8), (4, 16)]
    assert 0 < fast["points"][0]["seconds"] < fast["points"][1]["seconds"]
    gains = {}
    for variant in (slow, fast):
        runs = [out / "runs" / f"{variant['name']}-seed{seed}" for seed in (0, 1)]
        for point in variant["points"]:
            found = np.stack([rewards(run, point["steps"]) - rewards(run, 0) for run in runs])
            assert point["gain"]["mean"] == pytest.approx(found.mean())
            assert point["gain"]["error_conditions"] == pytest.approx(found.mean(0).std(ddof=1) / 3**0.5)
            assert point["gain"]["error_seeds"] == pytest.approx(found.mean(1).std(ddof=1) / 2**0.5)
        assert variant["gains"]["heldout"]["reward"] == variant["points"][-1]["gain"]
        gains[variant["name"]] = found
    assert gains["fast"].any()
    assert fast["lead"]["heldout"]["mean"] == pytest.approx((gains["fast"] - gains["slow"]).mean())
    assert {"ssim", "psnr", "color", "diversity"} <= set(fast["gains"]["heldout"])


def test_table_and_picture_are_there(finished):
    text = (finished.asked.out / "learn.md").read_text()
    header, _, slow, fast = text.splitlines()[:4]
    assert "gain over slow" in header
    assert len({line.count("|") for line in (header, slow, fast)}) == 1
    assert "--lr 0.05" in text
    with Image.open(finished.asked.out / "learn.png") as picture:
        assert picture.width > picture.height


def test_other_settings_are_not_mixed_into_old_runs(finished):
    shared, slow, _ = finished.asked.variants
    before = (finished.asked.out / "learn.json").read_text()
    with pytest.raises(
        UserError, match=r"runs of fast have begun with other settings \(learner\.lr\): choose another --out"
    ):
        learn.run(replace(finished.asked, variants=(shared, slow, "fast: --steps 4 --lr 0.06")))
    with pytest.raises(UserError, match=r"the runs of slow have begun with other settings \(points\)"):
        learn.run(replace(finished.asked, points=3))
    with pytest.raises(UserError, match=r"slow have begun with other settings \(steps, seconds, trajectories\)") as error:
        learn.run(replace(finished.asked, variants=(shared, "slow:")))
    assert "\n" not in str(error.value)
    assert (finished.asked.out / "learn.json").read_text() == before


def test_variants_are_methods_or_names_with_flags():
    shared = "all: --conditions 16 --lr 1e-3"
    (plain,) = read_variants((shared, "gradient"))
    (branched,) = read_variants(("all: --group 8", "vmr"))
    assert (branched.config.learner.credit, branched.config.rollout.group) == ("vmr", 8)
    (own,) = read_variants((shared, "own: --preset paper --conditions 8 --steps 5"))
    assert (plain.name, plain.config.learner.credit, plain.config.conditions) == ("gradient", "gradient", 16)
    assert (plain.config.steps, plain.has_steps) == (demo().steps, False)
    assert (own.config.learner.credit, own.config.learner.lr, own.config.conditions) == ("trajectory", 1e-3, 8)
    assert (own.config.learner.lora_rank, own.config.steps, own.has_steps) == (256, 5, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nope"], r"--variants 'nope': give a method of --credit \(trajectory, "),
        (["all: --lr 1"], "names nothing to compare"),
        (["a/b: --lr 1"], "a name has letters, digits"),
        (["gradient", "gradient: --lr 1"], "gradient is there twice"),
        (["a: --lr fast"], "--variants, a: Error parsing --lr: could not convert string to float: 'fast'; `python"),
        (["a: --nope 3"], "--variants, a: Unrecognized options: --nope, 3; `python"),
        (["a: --lr '1"], "--variants, a: No closing quotation"),
        (["a: --group 1"], "--variants, a: --group 1"),
        (["vmr"], "--variants, vmr: --group 2: must be even and at least 4 with --credit vmr"),
        (["a: --seed 3"], "--variants, a: --seed is the same for all variants: give bench.py learn --seeds"),
        (["a: --eval_every 3"], "--eval-every is the same for all variants: give bench.py learn --points"),
        (["a: --dry-run"], "leave out --dry-run and --what-if"),
        (["a: --stop-when-flat 2"], "--stop-when-flat would end a run before its time is up"),
        (["gradient", "b: --reward psnr"], "gradient and b differ in --reward"),
    ],
)
def test_bad_variants_are_told_in_one_line(words, said):
    with pytest.raises(UserError, match=said) as error:
        read_variants(words)
    assert "\n" not in str(error.value)


def test_a_mistake_ends_the_program_before_anything_is_written(tmp_path, monkeypatch, capsys):
    out = tmp_path / "learn"
    shards = tmp_path / "none.tar"
    assert exit_code(monkeypatch, bench.main, "learn", "--out", out, "--variants", f"a: --shards {shards}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(shards) in line
    assert not out.exists()
    for wrong in ({"seconds": -1}, {"seconds": float("inf")}, {"points": 0}, {"seeds": (1, 1)}):
        with pytest.raises(UserError, match=f"--{next(iter(wrong))}"):
            Learn(**wrong)


def test_the_steps_that_fit():
    (variant,) = read_variants(["a: --conditions 4 --group 8"])
    assert steps_within(variant, 10.0, 0, 3.0) == 3
    assert steps_within(variant, 10.0, 64, 3.0) == 2
    assert steps_within(variant, 0.0, 100, None) == 3
    with pytest.raises(UserError, match="--seconds 2 --trajectories 0: give more, since one step of a takes 3 s and 32"):
        steps_within(variant, 2.0, 0, 3.0)
    with pytest.raises(UserError, match="a has no end: give --seconds or --trajectories"):
        steps_within(variant, 0.0, 0, None)


def test_a_plan_by_which_nothing_was_done_may_change(tmp_path, monkeypatch):
    """As after a budget that was too small for another variant."""
    done: list[tuple[str, int, int]] = []

    class Stop(Exception):
        pass

    def train(config):
        done.append((config.name, config.steps, config.monitor.eval_every))
        raise Stop

    monkeypatch.setattr(learn, "time_step", lambda config: 3.0 if config.learner.credit == "gradient" else 1.0)
    monkeypatch.setattr(learn, "train", train)
    with pytest.raises(UserError, match="--seconds 2 --trajectories 0: give more"):
        learn.run(Learn(out=tmp_path, seconds=2))
    with pytest.raises(Stop):
        learn.run(Learn(out=tmp_path, seconds=9, points=4))
    assert done == [("trajectory-seed0", 9, 3)]
    plans = {name: json.loads((tmp_path / "plans" / f"{name}.json").read_text()) for name in ("trajectory", "gradient")}
    assert {name: plan["steps"] for name, plan in plans.items()} == {"trajectory": 9, "gradient": 3}


def test_the_time_of_a_step_is_that_after_the_first_one(monkeypatch):
    said: list[str] = []

    class Clockwork:
        def setup(self, config, checkpoint):
            said.append("setup")

        def step(self, step: int):
            return SimpleNamespace(metrics={"time/step": (9.0, 1.0, 6.0, 2.0, 3.0, 1.5)[step]})

        def close(self):
            said.append("close")

    monkeypatch.setattr(learn, "start_worker", lambda config, stop: Clockwork())
    assert time_step(demo()) == 2.0
    assert said == ["setup", "close"]


def test_errors_are_over_conditions_and_over_seeds():
    gain = Gain.of(np.array([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]]))
    assert gain == Gain(3.0, pytest.approx(1 / 3**0.5), pytest.approx(1.0), 2.0, 4.0)
    assert gain.text() == "+3.0000 (0.5774; 1.0000)"
    assert Gain.of(np.array([[1.0]])).text() == "+1.0000 (-; -)"


def learned(name: str, means: list[float], **changes) -> Learned:
    points = tuple(
        Point(10 * i, 100.0 * i, 320 * i, Gain(mean, 0.1, 0.05, mean - 0.1, mean + 0.2)) for i, mean in enumerate(means, 1)
    )
    usual = Learned(name, "--lr 1", (0, 1), None, points, {"heldout": {"reward": -5.0}}, {}, None)
    return replace(usual, gains={"heldout": {"reward": points[-1].gain}}, **changes)


def test_the_picture_has_a_line_and_two_bands_for_each_variant():
    by_time, by_samples = figure([learned("one", [0.1, 0.2]), learned("two", [0.3, 0.4])]).axes
    for axes, spent in ((by_time, [0, 100, 200]), (by_samples, [0, 320, 640])):
        lines = {line.get_label(): line for line in axes.lines}
        assert list(lines["two (2 seeds)"].get_xdata()) == spent
        assert list(lines["two (2 seeds)"].get_ydata()) == [0.0, 0.3, 0.4]
        assert len(axes.collections) == 4
    light = by_time.collections[0].get_paths()[0].vertices[:, 1]
    assert (light.min(), light.max()) == (0.0, pytest.approx(0.4))


def test_a_run_that_took_another_time_than_planned_is_noted():
    assert "note: one trained for" in markdown([learned("one", [0.1, 0.2], expected=170.0)])
    assert "note" not in markdown([learned("one", [0.1, 0.2], expected=190.0)])

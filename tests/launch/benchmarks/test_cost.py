"""How cost grows is predicted without running anything, and measured where that is quick."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from launch.benchmarks import cost, fits
from launch.benchmarks.config import Cost, Effort
from launch.benchmarks.cost_result import AXES, Case
from launch.configs.shape import ModelShape, sides_up_to
from learner.grpo.config import LearnerConfig
from rollout.config import RolloutConfig
from stylevar.config import PAPER_PATCH_NUMS
from stylevar.errors import UserError

TINY = ModelShape(depth=1, patch_nums=(1, 2, 3), ch=32, V=32, Cvae=8, ch_mult=(1, 1, 1), style_enc_dim=32)


def settings(**changes) -> Cost:
    usual = {
        "model": TINY,
        "rollout": RolloutConfig(group=2),
        "learner": LearnerConfig(lora_rank=4),
        "effort": Effort(repeat=1, warmup=0),
        "conditions": 1,
        "vary_conditions": (2,),
        "vary_group": (4,),
        "vary_depth": (2,),
        "vary_image_size": (16,),
        "cards": (),
        "device": "cpu",
    }
    return Cost(**(usual | changes))


@pytest.mark.slow
def test_each_axis_varies_one_quantity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cost.run(settings(measure_below=0, json=True, plot=tmp_path / "cost.png"))
    result = json.loads(capsys.readouterr().out)
    base = Case(1, 2, 1, 12)
    cases = {axis: [Case(**p["case"]) for p in result["points"] if p["axis"] == axis] for axis in AXES}
    assert cases["conditions"] == [base, Case(2, 2, 1, 12)]
    assert cases["group"] == [base, Case(1, 4, 1, 12)]
    assert cases["depth"] == [base, Case(1, 2, 2, 12)]
    assert cases["image_size"] == [base, Case(1, 2, 1, 16)]
    assert result["flops_per_second"] is None
    assert all(point["seconds"] is None for point in result["points"])
    by_conditions = [point["flops"] for point in result["points"] if point["axis"] == "conditions"]
    weights = 2 * by_conditions[0] - by_conditions[1]  # what does not depend on their number
    assert 0 <= weights < 0.05 * by_conditions[0]
    with Image.open(tmp_path / "cost.png") as picture:
        assert picture.width > picture.height


@pytest.mark.slow
def test_short_steps_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    every = cost.measure(settings(measure_below=1e9, vary_depth=(), vary_image_size=()))
    assert all(point.seconds is not None and point.seconds > 0 for point in every.points)
    few = cost.measure(settings(measure_below=1e-9, vary_conditions=(), vary_group=(), vary_depth=(), vary_image_size=()))
    assert {point.seconds for point in few.points} == {None}
    assert few.seconds(few.points[0]) > 0
    assert "FLOP/s, as measured first" in few.text()


def test_sides_of_token_maps_grow_as_published() -> None:
    assert sides_up_to(16) == PAPER_PATCH_NUMS
    assert sides_up_to(1) == (1,)
    for last in range(1, 70):
        sides = sides_up_to(last)
        assert sides[-1] == last
        assert list(sides) == sorted(set(sides))


def test_an_image_must_consist_of_whole_tokens() -> None:
    with pytest.raises(UserError, match="--vary-image-size 18: must be a multiple of 4"):
        cost.measure(settings(measure_below=0, vary_image_size=(18,)))


def test_the_last_value_that_fits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search asks few sizes, and names the last one that fits."""

    class Chosen:
        def __init__(self, fits: bool) -> None:
            self.shortage = None if fits else "too large"

    asked = []

    def choice(arch, memory_gb: float) -> Chosen:
        asked.append(arch)
        return Chosen(arch <= memory_gb)

    monkeypatch.setattr(fits, "_choice", choice)
    values = range(2, 61, 2)
    for limit, wanted in ((1, 0), (2, 2), (33, 32), (100, 60)):
        asked.clear()
        assert fits._last_that_fits(values, lambda value: value, limit) == wanted
        assert len(asked) <= 6

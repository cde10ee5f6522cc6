"""`launch/report.py`: one page that needs nothing beside it, and what is broken costs no more than itself."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import refused
from grpo_files import config as grpo_config
from grpo_files import write_inputs
from PIL import Image
from program import exit_code

from launch import report
from launch.common import cli
from launch.configs.io import as_kept, to_plain
from launch.configs.sft import SftConfig
from launch.report import ReportConfig
from launch.rl.colocated import ColocatedWorker
from launch.rl.run import execute
from launch.run.run_folder import RunFolder
from launch.run.telemetry import Telemetry
from launch.run_report.curves import Chart, Line, draw
from launch.run_report.record import read_run


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def run(inputs) -> Path:
    """A finished GRPO run with merges."""
    settings = grpo_config(inputs, inputs / "runs")
    execute(settings, None, ColocatedWorker())
    return settings.runs / "run"


@pytest.fixture
def copy(run, tmp_path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run", symlinks=True))


class _Page(HTMLParser):
    """Whether all elements are closed, and what the page refers to."""

    VOID = ("meta", "img", "input", "br", "link")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.sources: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action"):
                self.sources.append(value)
            if name == "id":
                self.ids.append(value)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_data(self, data):
        self.text += data


def page_of(folder: Path, **flags) -> _Page:
    report.main(ReportConfig(folder, **flags))
    page = _Page()
    page.feed((folder / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_the_page_needs_nothing_beside_it(run, capsys):
    page = page_of(run)
    assert "report.html" in capsys.readouterr().out
    pictures = [source for source in page.sources if source.startswith("data:image/webp;base64,")]
    assert len(pictures) >= 3  # before, during and after
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))) as image:
            image.load()
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    content = (run / "report.html").read_text()
    assert not re.search(r"@import|url\((?!#)|<link|<script src", content)
    assert len(page.ids) == len(set(page.ids))


def test_a_run_that_was_extended_is_not_finished_by_its_earlier_model(copy):
    assert read_run(copy).finished
    telemetry = Telemetry(RunFolder(copy), 8)
    telemetry.scalars(9, {"reward/mean": 0.0})
    telemetry.close()
    assert not read_run(copy).finished


def test_it_shows_all_that_a_run_is_asked_for(run):
    page = page_of(run)
    for text in (
        *("Reward", "KL to the reference policy", "KL per scale", "Clip fraction", "Entropy", "held-out"),
        *("sharpness", "color entropy", "edge density", "diversity", "peak merge after step", "rollout", "versions"),
        *("Configuration", "8 of 8 steps", "paired gain", "merge.patience"),
    ):
        assert text in page.text, text


def test_a_level_curve_lies_within_its_chart():
    """Not on the upper edge, where it would be hidden."""
    chart = Chart("memory", [Line("process", np.arange(3), np.array([1.7195, 1.7196, 1.7197]))], zero=True)
    path = re.search(r'id="c0-line2d_[^"]*">\s*<path d="([^"]*)"[^>]*stroke: var\(--s0\)', draw(chart, [], (0, 2), 0))
    assert path is not None
    heights = [float(y) for y in re.findall(r"[ML] \S+ (\S+)", path[1])]
    assert min(heights) > 12  # the axes begin at 7


def test_merges_are_marked_at_their_steps(run):
    record = read_run(run)
    marks = record.marks()
    assert {mark.kind for mark in marks} == {"peak_merge"}
    counted = record.scalars["merge/count"]
    assert [mark.step for mark in marks] == [
        int(step)
        for step, before, after in zip(counted.steps[1:], counted.values, counted.values[1:], strict=False)
        if after > before
    ]


def test_what_is_recorded(run):
    record = read_run(run)
    assert (record.kind, record.done, record.finished) == ("grpo", 8, True)
    assert len(record.rows["step"]) == 8 * 2 * 2
    assert {"component_sharpness", "component_target_sharpness", "component_diversity"} <= set(record.rows)
    assert list(record.scalars["heldout/diversity"].steps) == [0, 3, 6]
    assert "CPU cores" in record.starts[0].host
    assert record.notes == []


def test_a_resumed_run_shows_each_start(copy):
    Telemetry(RunFolder.open(copy), 6).close()
    record = read_run(copy)
    assert [start.step for start in record.starts] == [0, 6]
    assert record.done == 6
    assert "times the run was resumed1" in page_of(copy).text


def test_a_curve_that_was_renamed_goes_on(copy):
    """A run of an older version, resumed with this one."""
    for step, tag in ((20, "time/merge"), (21, "time/effective_weights")):
        telemetry = Telemetry(RunFolder.open(copy), step)
        telemetry.scalars(step, {tag: float(step)})
        telemetry.close()
    record = read_run(copy)
    assert "time/merge" not in record.scalars
    curve = record.scalars["time/effective_weights"]
    assert list(curve.steps) == [*range(1, 9), 20, 21]
    assert list(curve.values[-2:]) == [20.0, 21.0]


def test_a_run_cut_short_is_shown_as_far_as_it_goes(copy):
    """A killed process leaves a record of events half written, and a damaged disk worse."""
    (events,) = (copy / "tensorboard").iterdir()
    events.write_bytes(events.read_bytes()[:-7])
    first, *_ = sorted((copy / "trajectories").iterdir())
    first.write_bytes(first.read_bytes()[:50])
    (copy / "heldout" / "heldout_00000008.json").write_text('{"step": 8, "ke')
    (copy / "config.yaml").write_text("steps: [")
    record = read_run(copy)
    assert len(record.notes) == 4
    assert record.done == 8
    assert 0 < len(record.rows["step"]) < 8 * 2 * 2
    page = page_of(copy)
    for name in (events.name, first.name, "heldout_00000008.json", "config.yaml"):
        assert name in page.text


def test_garbage_within_the_events_costs_only_what_follows(copy):
    (events,) = (copy / "tensorboard").iterdir()
    content = bytearray(events.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = b"\xff" * 64
    events.write_bytes(content)
    assert page_of(copy).text


def test_a_run_without_steps(tmp_path, inputs):
    settings = grpo_config(inputs, tmp_path)
    run = RunFolder.create(tmp_path / "run", to_plain(settings))
    Telemetry(run).close()
    page = page_of(run.path)
    assert "No step is recorded yet" in page.text
    assert "config.yaml" in page.text
    shutil.rmtree(run.tensorboard)
    assert "no event file" in page_of(run.path).text


def test_no_run_at_all(tmp_path, monkeypatch, capsys):
    with refused("not a run", "neither config.yaml nor tensorboard"):
        read_run(tmp_path)
    assert exit_code(monkeypatch, lambda: cli.run(report.main, ReportConfig), tmp_path / "none") == 2
    assert "not a folder" in capsys.readouterr().err
    with refused("--grids 0"):
        ReportConfig(tmp_path, grids=0)


def test_a_page_that_cannot_be_written(run):
    with refused("cannot be written", "--out"):
        report.main(ReportConfig(run, run / "nowhere" / "page.html"))


def test_names_are_no_markup(copy):
    odd = copy.parent / "<b>odd & run"
    copy.rename(odd)
    page = page_of(odd)
    assert "<b>odd & run" in page.text


@pytest.mark.parametrize("name", ["[v1] {a,b} *", "-x", ".x.y", "漢" * 85])
def test_a_run_of_any_name(copy, name):
    odd = copy.rename(copy.parent / name)
    assert name in page_of(odd).text
    assert "no event file" not in page_of(odd).text


def test_a_name_that_tensorboard_cannot_read(copy):
    with refused("is not UTF-8", "rename the folder"):
        report.main(ReportConfig(copy.rename(copy.parent / "\udce9")))


def test_a_grpo_run_of_an_older_version_counts_from_0(tmp_path, inputs):
    """Its config does not say that it is one. Scores before and after were always at the number of steps done."""
    run = RunFolder.create(tmp_path / "run", to_plain(grpo_config(inputs, tmp_path)))
    telemetry = Telemetry(run)
    grid = torch.zeros(3, 8, 8, dtype=torch.uint8)
    for step in range(8):
        telemetry.scalars(step, {"reward/mean": float(step)})
    telemetry.scalars(3, {"merge/event/peak_merge": 1.0})
    telemetry.image_grid(2, "heldout/samples", grid)
    for done in (0, 8):
        telemetry.scalars(done, {"heldout_full/reward": float(done)})
        telemetry.image_grid(done, "heldout_full/samples", grid)
    telemetry.close()
    with run.final_model(8):
        pass
    record = read_run(run.path)
    assert (record.kind, record.done, record.finished) == ("grpo", 8, True)
    assert list(record.scalars["reward/mean"].steps) == list(range(1, 9))
    assert list(record.scalars["reward/mean"].values) == list(range(8))
    assert list(record.scalars["heldout_full/reward"].steps) == [0, 8]
    assert [mark.step for mark in record.marks()] == [4]
    steps = {tag: [picture.step for picture in pictures] for tag, pictures in record.pictures.items()}
    assert steps == {"heldout_full/samples": [0, 8], "heldout/samples": [3]}
    assert "8 of 8 steps" in page_of(run.path).text


def test_an_sft_run_of_an_older_version(tmp_path):
    """Its config does not say that it is one; it counted as today."""
    run = RunFolder.create(tmp_path / "sft", to_plain(SftConfig(shards=("a",), steps=4)))
    telemetry = Telemetry(run)
    for done in range(1, 5):
        telemetry.scalars(done, {"loss/train": 1.0})
    telemetry.close()
    record = read_run(run.path)
    assert (record.kind, record.done) == ("sft", 4)
    assert list(record.scalars["loss/train"].steps) == [1, 2, 3, 4]


def test_an_sft_run(tmp_path):
    run = RunFolder.create(tmp_path / "sft", as_kept(SftConfig(shards=("a",), steps=40)))
    telemetry = Telemetry(run)
    for step in range(1, 41):
        telemetry.scalars(step, {"loss/train": 7 - step / 10, "accuracy/train": step / 100, "lr": 1e-3, "time/step": 0.1})
        telemetry.scalars(step, {"time/data": 0.3})
    telemetry.scalars(40, {"val_pair/loss": 5.5, "val_pair/top1": 0.1, "val_pair_scales/loss/01": 4.0})
    telemetry.close()
    page = page_of(run.path)
    for text in ("SFT, not finished", "40 of 40 steps", "Cross-entropy", "Accuracy", "val_pair", "5.5000 at step 40", "75%"):
        assert text in page.text, text
    assert "gamed" not in page.text


def test_without_a_name_the_newest_run_is_reported(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert exit_code(monkeypatch, lambda: cli.run(report.main, ReportConfig)) == 2
    assert "no run in the folder runs" in capsys.readouterr().err
    for number, name in enumerate(("young", "old")):
        shutil.copytree(run, tmp_path / "runs" / name, symlinks=True)
        written = 1e9 - number
        for file in (tmp_path / "runs" / name).rglob("*"):
            os.utime(file, (written, written))
    (tmp_path / "runs" / "eval").mkdir()  # newer than both, and no run
    assert exit_code(monkeypatch, lambda: cli.run(report.main, ReportConfig)) == 0
    assert "runs/young/report.html" in capsys.readouterr().out
    curves = next((tmp_path / "runs" / "old" / "tensorboard").iterdir())
    os.utime(curves, (1e9 + 1, 1e9 + 1))  # it goes on
    assert exit_code(monkeypatch, lambda: cli.run(report.main, ReportConfig), "--runs", tmp_path / "runs") == 0
    assert "runs/old/report.html" in capsys.readouterr().out

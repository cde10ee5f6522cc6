"""What is printed to be pasted or read: commands, run paths in Ray jobs, and the examples of --help."""

from __future__ import annotations

import importlib
import re
import shlex
from functools import partial
from pathlib import Path

import pytest

from launch.common.cli import about
from launch.common.commands import JOB_CONFIG, command, continuing, lasting, loss_warning, quoted

PROGRAMS = ["grpo", "sft", "eval", "infer", "export", "prepare", "bench", "report", "train_adain", "train_vqvae", "demo_app"]
CONFIGS = {"InferConfig", "ReleaseConfig", "ReportConfig", "TrainVqvaeConfig", "AppConfig"}
"""Of programs whose flags come from `cli.run`."""


@pytest.fixture(autouse=True)
def outside_a_job(monkeypatch):
    monkeypatch.delenv(JOB_CONFIG, raising=False)


def test_a_pasted_command_means_what_was_meant():
    folder = "my runs/it's $HOME; *"
    assert shlex.split(command("grpo.py", "--resume", folder)) == ["python", "launch/grpo.py", "--resume", folder]
    assert quoted("tensorboard", "--logdir", Path("my runs")) == "tensorboard --logdir 'my runs'"


def test_a_run_is_continued_by_its_folder(tmp_path):
    run = tmp_path / "my runs" / "a"
    assert shlex.split(continuing("sft.py", run)) == ["python", "launch/sft.py", "--resume", str(run)]


def test_paths_of_a_job_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert lasting(Path("runs/a")) == Path("runs/a")
    assert loss_warning(Path("runs")) is None
    monkeypatch.setenv(JOB_CONFIG, "{}")
    assert lasting(Path("runs/a")) == tmp_path / "runs" / "a"
    assert loss_warning(Path("runs")) is None


def test_a_run_that_goes_away_with_its_job_is_warned_of(tmp_path, monkeypatch):
    folder = tmp_path / "session_1" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv(JOB_CONFIG, "{}")
    assert "--runs" in loss_warning(Path("runs"))
    assert str(folder / "runs") in loss_warning(Path("runs"))
    assert loss_warning(tmp_path / "runs") is None


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_keeps_every_example_on_a_line_of_its_own(name, monkeypatch, capsys):
    module = importlib.import_module(f"launch.{name}")
    examples = re.findall(r"^(?:python|ray) .*$", module.__doc__, re.MULTILINE)
    assert examples
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    main = vars(module).get("cli" if name in ("grpo", "eval") else "main")
    kind = next((value for key, value in vars(module).items() if key in CONFIGS), None)
    program = main if kind is None else partial(module.cli.run, main, kind)
    with pytest.raises(SystemExit):
        program()
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for example in examples:
        assert example in lines


def test_only_commands_are_set_apart():
    assert about("What it is.\n\npython launch/x.py\n\nMore of it.") == "What it is.\n\n  python launch/x.py\n\nMore of it."
    assert about(None) == ""

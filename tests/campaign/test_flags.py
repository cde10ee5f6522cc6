"""Every number that a command takes, just beyond its bounds and as no number at all, on the command line."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bounded import bounds, hints, holding, tried, whole, words
from campaign import keeps_promises, run, tree

from launch.bench import KINDS
from launch.configs.grpo import GrpoConfig
from launch.configs.sft import SftConfig
from launch.configs.vqvae import TrainVqvaeConfig
from launch.evaluation.baselines.config import TrainAdainConfig
from launch.evaluation.config import EvalConfig
from launch.export import ReleaseConfig
from launch.prepare import COMMANDS
from launch.report import ReportConfig
from launch.stylise.config import AppConfig, InferConfig

NEEDED = {
    "source": ["in"],
    "out": ["--out", "out"],
    "folder": ["in"],
    "styles": ["--styles", "in"],
    "count": ["--count", "1"],
    "shards": ["--shards", "a.tar"],
}
"""Words for fields without a default."""
CONFIGS: dict[tuple[str, ...], type] = {
    ("grpo",): GrpoConfig,
    ("sft",): SftConfig,
    ("infer",): InferConfig,
    ("eval",): EvalConfig,
    ("export",): ReleaseConfig,
    ("report",): ReportConfig,
    ("demo_app",): AppConfig,
    ("train_adain",): TrainAdainConfig,
    ("train_vqvae",): TrainVqvaeConfig,
    **{("prepare", name): kind for name, kind in COMMANDS.items()},
    **{("bench", name): kind for name, kind in KINDS.items()},
}


def numbers(kind: Any) -> Iterator[tuple[str, Any]]:
    """(name, type) of every field with bounds, in the config and its parts."""
    for name, hint in hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from numbers(hint)
        elif bounds(hint):
            yield name, hint


def needed(kind: Any) -> list[str]:
    """The words without which a command is not understood."""
    missing = [field.name for field in dataclasses.fields(kind) if field.default is field.default_factory]
    given = [word for name in missing for word in NEEDED.get(name, [])]
    return given if kind is not ReleaseConfig else ["in", "--out", "out.pth"]


def rows() -> list[Any]:
    """Every command with every flag of a number and every value that its bounds exclude; most are slow together."""
    params = []
    for command, kind in CONFIGS.items():
        for position, (name, hint) in enumerate(dict(numbers(kind)).items()):
            excluded = [number for number, allowed in tried(hint) if not allowed]
            if whole(hint):  # the parser refuses what is no whole number
                excluded = [number for number in excluded if math.isfinite(number)]
            said = [words(holding(hint, number if whole(hint) else float(number))) for number in excluded]
            # Among several words, the parser takes one that begins with - for a flag.
            said = [text for text in dict.fromkeys(said) if " " not in text or "-" not in text]
            for text in said:
                marks = () if position == 0 and text == said[-1] else pytest.mark.slow
                label = f"{' '.join(command)} --{name.replace('_', '-')} {text}"
                params.append(pytest.param(command, name, text, marks=marks, id=label))
    return params


@pytest.mark.parametrize(("command", "name", "said"), rows())
def test_numbers_beyond_their_bounds(tmp_path, monkeypatch, command, name, said):
    monkeypatch.chdir(tmp_path)
    program, *sub = command
    flag = f"--{name.replace('_', '-')}"
    given = needed(CONFIGS[command])
    if flag in given:
        given = given[: given.index(flag)] + given[given.index(flag) + 2 :]
    words_of_flag = [flag, *said.split()] if " " in said else [f"{flag}={said}"]  # -inf alone looks like a flag
    ending = keeps_promises(tmp_path, program, [*sub, *given, *words_of_flag], [f"{said}: ", "must"])
    assert ending.refusal.startswith((f"error: {flag} {said}: ", f"error: {name} {said}: "))


def texts() -> list[Any]:
    """For every command its flags of numbers, each with a word and with nothing."""
    params = []
    for command, kind in CONFIGS.items():
        for position, name in enumerate(dict(numbers(kind))):
            for text in ("word", ""):
                marks = () if (position == 0 and text == "word") or name == "what_if" else pytest.mark.slow
                params.append(pytest.param(command, name, text, marks=marks, id=f"{' '.join(command)} {name} {text!r}"))
    return params


@pytest.mark.parametrize(("command", "name", "text"), texts())
def test_what_is_no_number(tmp_path, monkeypatch, command, name, text):
    """The parser refuses it, with the flag's help in place of a line of ours."""
    monkeypatch.chdir(tmp_path)
    program, *sub = command
    flag = f"--{name.replace('_', '-')}"
    ending = run(program, *sub, *needed(CONFIGS[command]), f"{flag}={text}")
    assert ending.code == 2
    assert flag in ending.err
    assert "Traceback" not in ending.err
    assert tree(Path()) == {}

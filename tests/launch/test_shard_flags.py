"""Every program takes any number of shards, patterns and folders wherever it takes one."""

from __future__ import annotations

import pytest
import tyro

from launch.configs.grpo import GrpoConfig
from launch.configs.sft import SftConfig
from launch.configs.vqvae import TrainVqvaeConfig
from launch.evaluation.baselines.config import TrainAdainConfig
from launch.evaluation.config import EvalConfig

FLAGS = [
    (GrpoConfig, "shards"),
    (GrpoConfig, "heldout"),
    (GrpoConfig, "novel"),
    (SftConfig, "shards"),
    (SftConfig, "val_shards"),
    (EvalConfig, "shards"),
    (TrainVqvaeConfig, "shards"),
    (TrainVqvaeConfig, "heldout"),
    (TrainAdainConfig, "shards"),
    (TrainAdainConfig, "heldout"),
]


@pytest.mark.parametrize(("kind", "name"), FLAGS)
def test_one_or_many(kind: type, name: str) -> None:
    needed = ["--shards", "x"] if kind is TrainAdainConfig and name != "shards" else []
    for words in (("a.tar",), ("a.tar", "folder", "b-{0..3}.tar")):
        parsed = tyro.cli(tyro.conf.OmitArgPrefixes[kind], args=[*needed, f"--{name.replace('_', '-')}", *words])  # type: ignore[valid-type]
        assert getattr(parsed, name) == words

"""Settings that come back from a file as they were, and files that hold something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.config import MixtureConfig
from launch.configs.grpo import GrpoConfig, demo
from launch.configs.io import load_settings, to_plain
from launch.configs.sft import SftConfig
from stylevar.errors import UserError
from stylevar.yaml_files import write_yaml

MIXED = MixtureConfig((("omnistyle", 0.7), ("imagepulse", 0.3)))


@pytest.mark.parametrize(
    "config", [GrpoConfig(), demo(), SftConfig(shards=("a.tar", "b.tar"), mixture=MIXED, alphas=(0.5,))]
)
def test_settings_come_back_as_they_were(tmp_path: Path, config: GrpoConfig | SftConfig) -> None:
    write_yaml(tmp_path / "config.yaml", to_plain(config))
    assert load_settings(type(config), tmp_path / "config.yaml", "a run") == config


def test_one_pattern_for_shards_is_read_as_older_versions_wrote_it(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("shards: data/train-*.tar\nnovel: null\n")
    config = load_settings(GrpoConfig, tmp_path / "config.yaml", "a GRPO run")
    assert (config.shards, config.novel) == (("data/train-*.tar",), ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", r"config\.yaml is not the config of an SFT run: it needs names with values in place of \[1\]"),
        ("step: 3\n", "is not the config of an SFT run: it needs names with values in place of 3"),
        ("preset: demo\n", r"is not the config of an SFT run: it has unknown keys \['preset'\]"),
        ("step: {lr: fast}\n", "--lr fast: must be a number"),
        ("batch: 0\n", "--batch 0: must be positive"),
        ("runs: 3\nname: [\n", r"is not YAML \(.*give the config.yaml of an SFT run"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_settings(SftConfig, tmp_path / "config.yaml", "an SFT run")


def test_a_value_of_another_type_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("runs: 3\n")
    with pytest.raises(UserError, match="is not the config of a GRPO run .*: correct it"):
        load_settings(GrpoConfig, tmp_path / "config.yaml", "a GRPO run")

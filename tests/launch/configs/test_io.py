"""The kind of a run: written in its config.yaml, guessed for older ones."""

from __future__ import annotations

import pytest
import yaml
from checkpoint_files import refused

from launch.configs import grpo, sft
from launch.configs.io import as_kept, kind_of

KINDS = {"grpo": (grpo.demo(), grpo.load_config), "sft": (sft.SftConfig(shards=("a",)), sft.load_config)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_config_says_which_kind_of_run_it_is_of(kind, tmp_path):
    settings, load = KINDS[kind]
    values = as_kept(settings)
    assert values["kind"] == kind == kind_of(values)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(values))
    assert load(file) == settings.absolute()
    del values["kind"]  # as older versions wrote it
    assert kind_of(values) == kind
    file.write_text(yaml.safe_dump(values))
    assert load(file) == settings.absolute()


@pytest.mark.parametrize("kind", KINDS)
def test_a_config_of_another_kind_is_refused(kind, tmp_path):
    settings, _ = KINDS[kind]
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(as_kept(settings)))
    (other,) = set(KINDS) - {kind}
    with refused(str(file), f"it belongs to a run of kind {kind}", f"give one of kind {other}"):
        KINDS[other][1](file)

"""What the learners of a distributed run are told."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from grpo_files import config

from launch.cluster.learner_group import LearnerGroup
from launch.configs.cluster import ClusterConfig
from learner.grpo.actor import LearnerWorker
from stylevar.policy import PolicySource


@pytest.mark.parametrize(("budget", "scarce"), [(None, False), ("9GiB", True)])
def test_a_memory_budget_makes_learners_on_a_cpu_return_freed_memory(budget, scarce):
    told = []
    call = SimpleNamespace(remote=lambda *arguments: told.append(arguments))
    actor = SimpleNamespace(setup=SimpleNamespace(options=lambda num_returns: call))
    placement = SimpleNamespace(
        device="cpu",
        names=lambda role, count: [f"{role}-{number}" for number in range(count)],
        threads=lambda role, wanted: 1,
        create=lambda role, number: actor,
    )
    calls = SimpleNamespace(add=lambda *arguments, **named: None)
    settings = replace(config(Path(), Path()), memory_budget=budget, cluster=ClusterConfig(learners=2))
    LearnerGroup(placement, settings, calls).start(PolicySource("model", "vae", lora_rank=4, seed=0))
    assert len(told) == 2
    for arguments in told:
        given = inspect.signature(LearnerWorker.setup).bind(None, *arguments).arguments
        assert given["scarce_memory"] is scarce
        assert given["steps"] == settings.steps

"""A user's own class as a reward: accepted if it keeps the interface, and otherwise refused with the rule it breaks."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn

from reward.base import PerceptualDistance
from reward.build import build_distance
from reward.config import RewardConfig
from reward.scorer import build_scorer
from stylevar.contracts import References
from stylevar.errors import UserError


class Mse(PerceptualDistance):
    """Mean squared difference of the pixels."""

    name = "mse"

    def __init__(self, config: RewardConfig) -> None:
        super().__init__()
        self.drop = nn.Dropout()

    def embed(self, images_01):
        return (self.drop(images_01),)

    def compare(self, first, second):
        return {"total": (first[0] - second[0]).square().mean((1, 2, 3))}


class AcrossTheBatch(Mse):
    def embed(self, images_01):
        return (images_01 - images_01.mean(0),)


class Noisy(Mse):
    def compare(self, first, second):
        return {"total": (first[0] - second[0] + torch.rand(())).square().mean((1, 2, 3))}


class Similarity(Mse):
    def compare(self, first, second):
        return {"total": -super().compare(first, second)["total"]}


class NotFinite(Mse):
    def compare(self, first, second):
        return {"total": super().compare(first, second)["total"] / 0}


class OneNumber(Mse):
    def compare(self, first, second):
        return {"total": super().compare(first, second)["total"].mean()}


class NoTotal(Mse):
    def compare(self, first, second):
        return {"mse": super().compare(first, second)["total"]}


class ListEmbedding(Mse):
    def embed(self, images_01):
        return [images_01]


class NoRows(Mse):
    def embed(self, images_01):
        return (images_01.mean(0),)


class InPlace(Mse):
    def embed(self, images_01):
        return (images_01.sub_(0.5),)


class AlwaysTraining(Mse):
    def train(self, mode=True):
        return nn.Module.train(self, True)


class Mapped(Mse):
    def compare_cells(self, first, second):
        return (first[0] - second[0]).square().mean(1)


class HalfMapped(Mapped):
    def compare_cells(self, first, second):
        return super().compare_cells(first, second) / 2


class FlatMap(Mapped):
    def compare_cells(self, first, second):
        return super().compare_cells(first, second).mean((1, 2))


class Unnamed(Mse):
    name = "two words"


class Broken(Mse):
    def __init__(self, config):
        raise FileNotFoundError("weights.pt")


class Moody(Mse):
    def embed(self, images_01):
        if images_01.shape[-1] < 16:
            raise ValueError("too\nsmall")
        return super().embed(images_01)


class NeedsSize(Mse):
    def embed(self, images_01):
        return (images_01.view(-1, 3, 8, 8),)


BREAKS = {
    AcrossTheBatch: "depends on the rest of the batch",
    Noisy: "the same images give different values",
    Similarity: "farther from itself",
    NotFinite: "'total' is not finite",
    OneNumber: r"must be a floating point tensor \[N\]",
    NoTotal: 'dict with "total"',
    ListEmbedding: "a tuple of tensors",
    NoRows: "a row per image",
    InPlace: "changes the images",
    AlwaysTraining: "training mode",
    HalfMapped: "the mean of compare_cells must be compare's 'total'",
    FlatMap: r"compare_cells must return a tensor \[N, h, w\]",
    Unnamed: "must be a plain word",
    Broken: r"Broken\(config\) failed with FileNotFoundError: weights.pt",
    NeedsSize: "a row per image",
}


@pytest.fixture(autouse=True)
def module(monkeypatch):
    """This file's classes under a name that --reward can give."""
    found = types.ModuleType("users_rewards")
    found.__dict__.update({kind.__name__: kind for kind in (Mse, Mapped, Moody, *BREAKS)}, number=3)
    monkeypatch.setitem(sys.modules, "users_rewards", found)


def test_an_own_class_may_have_a_map():
    images = torch.randint(0, 256, (1, 2, 3, 16, 16), dtype=torch.uint8)
    scorer = build_scorer(RewardConfig("users_rewards:Mapped=2,ssim=1"), detail="map")
    scores = scorer.score(images, References(images[:, 0]), "map")
    torch.testing.assert_close(scores.detail.mean((2, 3)), scores.rewards, atol=1e-5, rtol=1e-4)
    with pytest.raises(UserError, match="--credit local: the reward mse cannot be split"):
        build_scorer(RewardConfig("users_rewards:Mse"), detail="map")


def test_an_own_class_is_a_reward():
    images = torch.zeros(1, 2, 3, 16, 16, dtype=torch.uint8)
    images[0, 1] = 255
    scores = build_scorer(RewardConfig("users_rewards:Mse", reward_scale=2.0)).score(images, References(images[:, 0]))
    assert scores.rewards.tolist() == [[0.0, -2.0]]


def test_an_own_class_in_a_sum_has_its_name():
    images = torch.randint(0, 256, (1, 2, 3, 16, 16), dtype=torch.uint8)
    scores = build_scorer(RewardConfig("users_rewards:Mse=2,ssim=1")).score(images, References(images[:, 0]))
    expected = 2 * scores.components["distance_mse"] + scores.components["distance_ssim"]
    torch.testing.assert_close(scores.rewards, -expected)


@pytest.mark.parametrize(("kind", "rule"), BREAKS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_what_breaks_the_interface_is_refused(kind, rule):
    with pytest.raises(UserError, match=rule):
        build_distance(RewardConfig(f"users_rewards:{kind.__name__}"))


@pytest.mark.parametrize("reward", ["users_rewards:Moody", "users_rewards:Moody=2,ssim=1"])
def test_an_error_in_the_midst_of_a_run_is_one_line(reward):
    scorer = build_scorer(RewardConfig(reward))
    images = torch.zeros(1, 1, 3, 8, 8, dtype=torch.uint8)
    said = r"^--reward users_rewards:Moody failed with ValueError: too small \(.*test_custom.py, line \d+\): .*--resume$"
    with pytest.raises(UserError, match=said):
        scorer.score(images, References(images[:, 0]))


def test_what_is_not_there_is_refused():
    with pytest.raises(UserError, match="no module named nowhere"):
        build_distance(RewardConfig("nowhere.at.all:Mine"))
    for name in ("Missing", "number"):
        with pytest.raises(UserError, match=f"has no class {name} derived from PerceptualDistance"):
            build_distance(RewardConfig(f"users_rewards:{name}"))

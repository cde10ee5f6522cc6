"""Rewards that compare with the content and the style, beside the target or without one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reward.actor import RewardWorker
from reward.base import Embedding
from reward.config import RewardConfig
from reward.lite import LiteDistance
from reward.scorer import build_scorer
from reward.statistics import STATISTICS
from stylevar.contracts import ConditionBatch, References, RewardDetail, Scores
from stylevar.errors import UserError

SUM = "lite@content=2,lite@style=0.5,ssim=1,ssim@content=0.25"


def pictures(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*shape, 3, 32, 32), generator=generator, dtype=torch.uint8)


ALL = References(pictures(2, seed=1), pictures(2, seed=2), pictures(2, seed=3))


def scored(reward: str, references: References, detail: RewardDetail = "none", batch: int = 64) -> Scores:
    images = pictures(2, 3, 2) if detail == "prefixes" else pictures(2, 3)
    return build_scorer(RewardConfig(reward, reward_batch=batch), detail=detail).score(images, references, detail)


@pytest.mark.parametrize("reference", ["content", "style"])
def test_one_distance_to_an_input_is_that_to_a_target_with_its_pixels(reference):
    found = scored(f"lite@{reference}=2", ALL)
    expected = scored("lite=2", References(ALL.pictures()[reference]))
    assert torch.equal(found.rewards, expected.rewards)
    assert torch.equal(found.components["features"], expected.components["features"])


@pytest.mark.parametrize("detail", ["none", "gradient", "map", "prefixes"])
@pytest.mark.parametrize("batch", [64, 2])
def test_a_sum_over_references_is_the_sum_of_its_terms(detail, batch):
    found = scored(SUM, ALL, detail, batch)
    terms = [scored(term, ALL, detail) for term in SUM.split(",")]
    torch.testing.assert_close(found.rewards, sum(term.rewards for term in terms), atol=1e-5, rtol=1e-5)
    if found.detail is not None:
        expected = sum(term.detail.float() for term in terms)
        torch.testing.assert_close(found.detail.float(), expected, atol=1e-3, rtol=0.03)
    for name, term in zip(("lite@content", "lite@style", "ssim", "ssim@content"), terms, strict=True):
        torch.testing.assert_close(found.components[f"distance_{name}"], term.components["total"])
    torch.testing.assert_close(found.components["lite@style_features"], terms[1].components["features"])


def test_generated_images_are_embedded_once_for_all_references(monkeypatch):
    rows: list[int] = []
    embed = LiteDistance.embed

    def counted(distance: LiteDistance, images_01: Tensor) -> Embedding:
        rows.append(len(images_01))
        return embed(distance, images_01)

    monkeypatch.setattr(LiteDistance, "embed", counted)
    scored("lite@content=2,lite@style=1", ALL)
    assert sorted(rows) == [2, 2, 6]


def test_without_targets_what_compares_with_them_is_left_out():
    inputs = References(content=ALL.content, style=ALL.style)
    found, paired = (scored("lite@content=2,color@style=0.05", references) for references in (inputs, ALL))
    assert torch.equal(found.rewards, paired.rewards)
    assert {*STATISTICS, "diversity", "distance_color@style"} <= found.components.keys()
    left_out = paired.components.keys() - found.components.keys()
    assert left_out == {"ssim", "psnr", "color", *(f"target_{name}" for name in STATISTICS)}


def test_a_missing_reference_is_never_replaced():
    with pytest.raises(ValueError, match="compares with the target, but these conditions have none"):
        scored("lite=1,color@style=0.05", References(content=ALL.content, style=ALL.style))


def test_references_of_another_size_are_refused():
    with pytest.raises(ValueError, match="references differ in number or size"):
        scored("lite@content", References(ALL.target, pictures(1), ALL.style))


def test_a_reward_worker_compares_with_all_pictures_of_its_conditions():
    worker = RewardWorker("reward-0")
    worker.setup(RewardConfig(SUM), "cpu", torch.get_num_threads())
    assert ALL.target is not None
    assert ALL.content is not None
    assert ALL.style is not None
    batch = ConditionBatch(("a", "b"), ALL.content, ALL.style, ALL.target)
    torch.testing.assert_close(worker.score(pictures(2, 3), batch, 0)[0].rewards, scored(SUM, ALL).rewards)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("color@palette=1", r"--reward color@palette: unknown reference 'palette'; choose @target"),
        ("color@", "unknown reference ''"),
        ("pretty@style", "unknown reward 'pretty'"),
        ("color@style=-1", r"--reward color@style=-1: the weight must be a positive number"),
        ("color@style,color@style=2", "color@style is given twice"),
        ("color,color@target", "color is given twice"),
    ],
)
def test_what_cannot_be_compared_with(reward, message):
    with pytest.raises(UserError, match=message) as caught:
        RewardConfig(reward)
    assert "\n" not in str(caught.value)

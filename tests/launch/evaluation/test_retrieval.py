"""Looking a sample's own target up among others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data.shards import TripletShards
from launch.evaluation.retrieval import Retrieval, candidates, descriptors

DEMO = Path(__file__).parents[3] / "data" / "demo"


@pytest.fixture(scope="module")
def triplets() -> TripletShards:
    return TripletShards([DEMO / "novel-00000.tar"])


@pytest.fixture(scope="module")
def targets(triplets) -> torch.Tensor:
    return torch.stack([triplets[i].target for i in range(len(triplets))])


@pytest.fixture(scope="module")
def retrieval(triplets) -> Retrieval:
    return Retrieval(triplets[i] for i in range(len(triplets)))


def share_found(retrieval: Retrieval, images_u8: torch.Tensor) -> float:
    rows = list(range(len(images_u8)))
    return retrieval.found(rows, images_u8.float().unsqueeze(1) / 255).mean().item()


def test_targets_find_themselves_also_blurred_and_noisy(retrieval, targets):
    assert share_found(retrieval, targets) == 1
    blurred = torch.nn.functional.avg_pool2d(targets.float(), 5, 1, 2)
    noisy = blurred + 20 * torch.randn(targets.shape, generator=torch.Generator().manual_seed(0))
    assert share_found(retrieval, noisy.clamp(0, 255).byte()) > 0.9


def test_what_says_nothing_is_right_by_chance(retrieval, targets):
    noise = torch.randint(0, 256, targets.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert share_found(retrieval, noise) < 0.25
    # The style's palette without any content does not do, and neither does another picture.
    palette = torch.nn.functional.interpolate(targets.float().mean((2, 3), keepdim=True), size=80).byte()
    assert share_found(retrieval, palette) < 0.6
    assert share_found(retrieval, targets.roll(3, 0)) < 0.1


def test_candidates_share_style_or_content():
    metas = [{"style_id": s, "content_name": c} for s in range(10) for c in range(10)]
    table = candidates(metas)
    assert table.shape == (100, 16)
    for i, row in enumerate(table.tolist()):
        assert row[0] == i
        assert len(set(row)) == 16
        assert sum(metas[j]["style_id"] == metas[i]["style_id"] for j in row[1:]) == 8
        assert sum(metas[j]["content_name"] == metas[i]["content_name"] for j in row[1:]) == 7
    assert candidates(metas[:3]).shape == (3, 3)


def test_descriptors_have_length_one():
    images = torch.rand(3, 3, 80, 80, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(descriptors(images).norm(dim=1), torch.ones(3))

"""Triplets kept as tensors give the batches that single triplets would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data.augment import augment
from data.config import AugmentConfig
from data.resident import ResidentTriplets
from data.shards import TripletShards
from stylevar.contracts import ConditionBatch

DEMO = Path(__file__).parents[2] / "data" / "demo"


def fingerprint(images_u8: torch.Tensor) -> torch.Tensor:
    """Stands in for a tokenizer: numbers that tell images, and mirrored ones, apart."""
    weights = torch.arange(images_u8[0].numel()).view(images_u8[0].shape) % 251
    sums = (images_u8.long() * weights).sum((1, 2, 3))
    return torch.stack([sums % 30011, sums // 30011 % 30011], dim=1).to(torch.int16)


@pytest.mark.parametrize("flip", [True, False])
def test_batches_equal_those_of_single_triplets(flip):
    shards = TripletShards([DEMO / "novel-00000.tar"], image_size=80)
    config = AugmentConfig(augment=False, flip=flip)
    resident = ResidentTriplets(shards, config, fingerprint, torch.device("cpu"))
    rows, epochs = np.array([3, 0, 41, 3, 17, 17]), np.array([0, 0, 0, 1, 1, 2])
    batch = resident.batch(rows, epochs, seed=5)
    expected = ConditionBatch.stack(
        [augment(shards.usable(int(r)), config, 5, int(e)) for r, e in zip(rows, epochs, strict=True)]
    )
    assert batch.keys == expected.keys
    for role in ("content", "style", "target"):
        assert torch.equal(getattr(batch, role), getattr(expected, role))
    wanted = torch.stack([fingerprint(getattr(expected, role)) for role in ("content", "style", "target")], dim=1)
    assert torch.equal(batch.tokens, wanted)


def test_pictures_that_vary_are_refused():
    shards = TripletShards([DEMO / "novel-00000.tar"], image_size=80)
    with pytest.raises(ValueError, match="--no-augment"):
        ResidentTriplets(shards, AugmentConfig(), fingerprint, torch.device("cpu"))

"""The conditions of a run: those of a step follow the order, whole or in parts, and unusable sets are refused at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch

from data.conditions import ConditionSets, spread
from stylevar.errors import UserError

DEMO = Path(__file__).parents[2] / "data" / "demo"


def sets(pattern: str, size: int = 80, conditions: int = 5) -> ConditionSets:
    return ConditionSets({"train": (pattern,), "heldout": (pattern,)}, size, "no tokens here", conditions, seed=0)


def test_a_step_takes_the_conditions_that_the_order_gives_it() -> None:
    found = sets(str(DEMO / "novel-*.tar"))
    triplets, chosen = found.sets["train"], found.order.position(2, 5)
    batch = found.of_step(2)
    assert batch.keys == tuple(triplets.keys[i] for i in chosen)
    assert batch.target.shape == (5, 3, 80, 80)
    assert torch.equal(batch.style[1], triplets[chosen[1]].style)
    part = found.of_step(2, slice(1, 3))
    assert part.keys == batch.keys[1:3]
    assert torch.equal(part.content, batch.content[1:3])
    assert found.pick("heldout", [3, 0]).keys == (triplets.keys[3], triplets.keys[0])
    assert found.sizes() == {"train": 64, "heldout": 64}


def test_unusable_sets_are_refused_at_once(tmp_path: Path) -> None:
    tiny.shard(tmp_path / "few.tar", 3)
    with pytest.raises(UserError, match=r"--conditions 5: .*few.tar has only 3 triplets"):
        sets(str(tmp_path / "few.tar"), tiny.SIZE)
    with pytest.raises(UserError, match="12x12, not 80x80|wrong size"):
        sets(str(tmp_path / "few.tar"), 80, conditions=2)


def test_pairs_need_a_reward_that_compares_with_the_inputs(tmp_path: Path) -> None:
    tiny.shard(tmp_path / "pairs.tar", 3, targets=False)
    patterns = {"train": (str(tmp_path / "pairs.tar"),)}
    batch = ConditionSets(patterns, tiny.SIZE, None, 2, seed=0).of_step(0)
    assert batch.target is None
    assert batch.to("cpu").select(slice(0, 1)).style.shape == (1, 3, tiny.SIZE, tiny.SIZE)
    with pytest.raises(UserError, match=r"the reward ssim compares with targets, but .*pairs.tar .*write ssim@content"):
        ConditionSets(patterns, tiny.SIZE, None, 2, seed=0, target_for="ssim")


def test_spread_takes_both_ends() -> None:
    assert spread(10, 4) == [0, 3, 6, 9]
    assert spread(3, 8) == [0, 1, 2]
    assert spread(3, None) == [0, 1, 2]

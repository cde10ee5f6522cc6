"""Groups that branch: who shares a prefix with whom, and on what the random numbers depend."""

from __future__ import annotations

import pytest
import torch

from stylevar.branching import Branching, prefix_tokens, sharing
from stylevar.errors import UserError
from stylevar.sampling import trajectory_seeds

CPU = torch.device("cpu")


@pytest.mark.parametrize(("step", "size"), [(0, 2), (1, 2), (2, 2), (3, 6), (4, 2), (7, 6)])
def test_pairs_share_a_prefix_in_three_steps_of_four_and_whole_groups_in_the_fourth(step, size):
    branching = Branching(5)
    seeds = branching.seeds(0, step, ("a", "b"), 6)
    assert len(set(seeds.flatten().tolist())) == 12
    assert (seeds >= 0).all()
    assert sharing(seeds) == size
    prefixes, rest = branching.streams(seeds, 14, CPU).uniform.split([5, 9], dim=-1)
    members = torch.arange(6) // size
    alike = (prefixes[:, :, None] == prefixes[:, None]).all(-1)
    assert torch.equal(alike, (members[:, None] == members).expand(2, 6, 6))
    others = ~torch.eye(6, dtype=torch.bool)
    assert not (rest[:, :, None] == rest[:, None])[:, others].any()
    assert not (prefixes[0, :, None] == prefixes[1, None]).any()


def test_another_seed_step_or_condition_gives_other_prefixes():
    numbers = [
        Branching(5).streams(Branching(5).seeds(*where, 4), 5, CPU).uniform[:, ::2]
        for where in ((0, 0, ("a",)), (1, 0, ("a",)), (0, 1, ("a",)), (0, 0, ("b",)))
    ]
    for i, first in enumerate(numbers):
        assert not any((first == other).any() for other in numbers[i + 1 :])


def test_a_step_s_number_is_all_that_decides_its_groups():
    """So a run that is resumed before a step draws the same groups as one that has made all steps before it."""
    been_there = Branching(5)
    for step in range(7):
        before = been_there.seeds(0, step, ("a", "b"), 4)
        assert torch.equal(Branching(5).seeds(0, step, ("a", "b"), 4), before)


def test_a_trajectory_s_numbers_do_not_depend_on_the_others():
    branching = Branching(3)
    seeds = branching.seeds(0, 0, ("a", "b"), 4)
    whole = branching.streams(seeds, 14, CPU).uniform
    assert torch.equal(branching.streams(seeds[1:, 1:2], 14, CPU).uniform, whole[1:, 1:2])


@pytest.mark.parametrize("group", [4, 5])
def test_groups_that_do_not_branch_are_noticed(group):
    with pytest.raises(ValueError, match="share no prefixes"):
        sharing(trajectory_seeds(0, 0, ("a", "b"), group))


def test_where_the_prefix_ends():
    published = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    assert prefix_tokens(published) == 1 + 4 + 9 + 16  # up to a side of 4
    assert prefix_tokens(published, 2) == 5
    assert prefix_tokens(published, 9) == 424
    assert prefix_tokens((1, 2, 3)) == 1
    with pytest.raises(UserError, match=r"--credit-middle 3: the model has 3 scales, .* give at most 2"):
        prefix_tokens((1, 2, 3), 3)
    with pytest.raises(UserError, match="--credit vmr: the model has only one scale"):
        prefix_tokens((16,))

"""Batches of several corpora: shares are kept, epochs are complete, and processes divide the work."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from data.config import MixtureConfig
from data.mixture import MixtureOrder
from data.order import EpochOrder
from stylevar.errors import UserError

CORPORA = {"a": np.arange(10), "b": np.arange(10, 17), "c": np.arange(17, 40)}
STEPS, BATCH = 60, 8


def config(weights: dict[str, float], end: dict[str, float] | None = None) -> MixtureConfig:
    return MixtureConfig(tuple(weights.items()), tuple((end or {}).items()))


def order(config: MixtureConfig, seed: int = 0) -> MixtureOrder:
    return MixtureOrder(CORPORA, config, seed, STEPS, BATCH)


def name_of(index: int) -> str:
    return next(name for name, members in CORPORA.items() if index in members)


def counts(found: MixtureOrder) -> list[Counter]:
    return [Counter(name_of(pick.sample) for pick in found.picks(step)) for step in range(STEPS)]


def test_without_weights_it_is_one_epoch_after_the_other() -> None:
    mixed, plain = order(MixtureConfig(), seed=3), EpochOrder(40, 3)
    for step in range(STEPS):
        picks = mixed.picks(step)
        assert [pick.sample for pick in picks] == plain.position(step, BATCH)
        assert [pick.epoch for pick in picks] == [i // 40 for i in range(step * BATCH, (step + 1) * BATCH)]


@pytest.mark.parametrize(
    ("weights", "end"),
    [
        ({"a": 1, "b": 1, "c": 1}, {}),
        ({"a": 7, "b": 2.5, "c": 0.5}, {}),
        ({"a": 1, "b": 0, "c": 0}, {"a": 0, "b": 0.3, "c": 0.7}),
        ({"a": 0.01, "b": 0.01, "c": 1}, {"a": 1, "b": 0.01, "c": 0}),
    ],
)
def test_shares_are_kept_all_the_time(weights, end) -> None:
    found = counts(order(config(weights, end)))
    assert all(sum(step.values()) == BATCH for step in found)
    last = end or weights
    for name in CORPORA:
        given = wanted = 0.0
        for step, count in enumerate(found):
            t = step / (STEPS - 1)
            wanted += BATCH * ((1 - t) * weights[name] / sum(weights.values()) + t * last[name] / sum(last.values()))
            given += count[name]
            assert abs(given - wanted) <= 1 + 1e-9, (name, step)


def test_each_corpus_runs_through_its_own_epochs() -> None:
    mixed = order(config({"a": 3, "b": 1, "c": 1}))
    by_epoch: dict[tuple[str, int], Counter] = {}
    for step in range(STEPS):
        for pick in mixed.picks(step):
            by_epoch.setdefault((name_of(pick.sample), pick.epoch), Counter())[pick.sample] += 1
    for (name, epoch), seen in by_epoch.items():
        assert max(seen.values()) == 1
        if (name, epoch + 1) in by_epoch:
            assert set(seen) == set(CORPORA[name].tolist())
    assert len([key for key in by_epoch if key[0] == "a"]) > 20


@pytest.mark.parametrize("mixture", [MixtureConfig(), config({"a": 3, "b": 1, "c": 1})])
def test_any_number_of_processes_takes_the_same_batch(mixture) -> None:
    mixed = order(mixture)
    for step in (0, 7, 59):
        for world in (1, 2, 4, 8):
            parts = [pick for rank in range(world) for pick in order(mixture).share(step, rank, world)]
            assert parts == mixed.picks(step)
    with pytest.raises(UserError, match="--batch 8: must be a multiple of --workers 3"):
        mixed.share(0, 0, 3)


def test_corpora_are_spread_over_the_slots() -> None:
    mixed = order(config({"a": 1, "b": 1, "c": 2}))
    first = Counter(name_of(mixed.share(step, 0, 2)[0].sample) for step in range(STEPS))
    assert min(first[name] for name in CORPORA) > 5
    assert mixed.picks(3) != order(config({"a": 1, "b": 1, "c": 2}), seed=1).picks(3)


@pytest.mark.parametrize(
    ("weights", "end", "message"),
    [
        ({"a": 1}, {}, "--weights names a, the shards hold a, b, c"),
        ({"a": 1, "b": 1, "d": 1}, {}, "--weights names a, b, d"),
        ({"a": 1, "b": -1, "c": 1}, {}, "each must be at least 0"),
        ({"a": 0, "b": 0, "c": 0}, {}, "one must be positive"),
        ({"a": 1, "b": 1, "c": 1}, {"a": 1}, "--weights-end names a, --weights a, b, c"),
        ({}, {"a": 1}, "--weights nothing"),
    ],
)
def test_bad_weights(weights, end, message) -> None:
    with pytest.raises(UserError, match=message):
        order(config(weights, end))


def test_a_corpus_is_named_once() -> None:
    with pytest.raises(UserError, match="--weights a 1 a 2: a corpus is named twice"):
        MixtureConfig((("a", 1.0), ("a", 2.0)))

"""Splits follow what images are: held-out contents and styles are in no other split."""

from __future__ import annotations

import pytest

from data.convert.split import SplitConfig
from stylevar.errors import UserError


def test_no_held_out_content_or_style_is_trained_on():
    config = SplitConfig(holdout_content=0.1, holdout_style=0.2, holdout_pair=0.3)
    rows = [(f"c{c}", f"s{s}", config.split(f"c{c}", f"s{s}")) for c in range(100) for s in range(100)]
    by_split = {name: [(c, s) for c, s, split in rows if split == name] for name in {r[2] for r in rows}}
    trained_contents, trained_styles = ({pair[i] for pair in by_split["train"]} for i in (0, 1))
    assert not trained_contents & {c for c, _ in by_split["val_content"]}
    assert not trained_styles & {s for _, s in by_split["val_style"]}
    assert {c for c, _ in by_split["val_style"]} <= trained_contents
    assert {s for _, s in by_split["val_pair"]} <= trained_styles
    assert 2 <= len({c for c, _ in by_split["val_content"]}) <= 20
    assert len(by_split["val_pair"]) / len(by_split["train"]) == pytest.approx(3 / 7, rel=0.1)


def test_shares_are_checked():
    with pytest.raises(UserError, match="--holdout-style 1.0"):
        SplitConfig(holdout_style=1.0)

"""Checkpoint files for tests, and the one-line refusals that bad ones must meet."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch

from stylevar import UserError


def copied(state, prefix=""):
    return OrderedDict((prefix + key, value.clone(memory_format=torch.contiguous_format)) for key, value in state.items())


def assert_same(state, expected):
    assert list(state) == list(expected)
    for key, value in expected.items():
        assert torch.equal(state[key], value), key
        assert state[key].dtype == value.dtype, key


def refused(*patterns):
    """UserError of one line in which all `patterns` occur."""
    return pytest.raises(UserError, match="(?s)" + "".join(f"(?=.*{p})" for p in (r"\A[^\n]*\Z", *patterns)))


def saved(state, tmp_path):
    torch.save({"model": state}, tmp_path / "bad.pth")
    return str(tmp_path / "bad.pth")

"""Data-parallel training is training on the whole batch."""

from __future__ import annotations

import ddp_worker
import pytest
import torch
import torch.multiprocessing as mp


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one process holds after two steps, and what each of two holds."""
    folder = tmp_path_factory.mktemp("ddp")
    threads = torch.get_num_threads()
    ddp_worker.train(0, 1, folder)
    torch.set_num_threads(threads)
    mp.spawn(ddp_worker.train, (2, folder), nprocs=2)
    return [torch.load(folder / f"{name}.pt") for name in ("1-0", "2-0", "2-1")]


@pytest.mark.parametrize("state", ["model", "average"])
def test_two_processes_hold_the_weights_of_one(found, state):
    alone, first, second = (result[state] for result in found)
    assert alone.keys() == first.keys()
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        # AdamW's first steps have the size of the learning rate wherever the gradient is more than rounding.
        off = (first[name].float() - value.float()).abs().nan_to_num(nan=0.0)  # inf - inf in the mask
        assert off.mean() < 2e-5, name


def test_metrics_and_validation_are_those_of_all(found):
    alone, first, second = found
    assert first["metrics"] == second["metrics"]
    for one, both in zip(alone["metrics"], first["metrics"], strict=True):
        assert both == pytest.approx(one, rel=1e-4)
    torch.testing.assert_close(first["sums"], alone["sums"], rtol=1e-4, atol=1e-3)
    assert torch.equal(first["sums"], second["sums"])

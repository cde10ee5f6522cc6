from __future__ import annotations

import pytest
import torch

from learner.grpo.panw import panw_weights

SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


def test_numbers_of_the_paper():
    weights = panw_weights(SCALES)
    assert weights.shape == (680,)
    assert weights.dtype == torch.float32
    assert weights.sum().item() == pytest.approx(1, abs=1e-6)
    assert weights[0].item() == pytest.approx(0.0337, abs=5e-5)
    assert weights[-1].item() == pytest.approx(0.0007, abs=5e-5)
    assert (weights[0] / weights[-1]).item() == pytest.approx(256**0.7, rel=1e-5)


def test_gamma_zero_weighs_tokens_alike():
    torch.testing.assert_close(panw_weights((1, 2, 3), gamma=0.0), torch.full((14,), 1 / 14))


def test_gamma_one_weighs_scales_alike():
    per_scale = torch.stack([part.sum() for part in panw_weights((1, 2, 3), gamma=1.0).split([1, 4, 9])])
    torch.testing.assert_close(per_scale, torch.full((3,), 1 / 3))


@pytest.mark.parametrize("scales", [(), (0, 1)])
def test_bad_scales(scales):
    with pytest.raises(ValueError, match="patch_nums"):
        panw_weights(scales)

"""The Fréchet distance against closed forms, and ArtFID's network in its published format."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision.models
from scipy.linalg import sqrtm
from torch.nn.functional import interpolate

from launch.evaluation.fid import ART_INCEPTION, frechet_distance, load_art_inception
from reward.base import MissingWeights
from stylevar.errors import UserError


def features(n: int, d: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


def test_in_one_dimension():
    """(mu_1 - mu_2)^2 + (sigma_1 - sigma_2)^2"""
    first, second = np.array([[0.0], [2.0]]), np.array([[5.0], [5.0], [8.0]])
    expected = (1 - 6) ** 2 + (first.std(ddof=1) - second.std(ddof=1)) ** 2
    assert frechet_distance(first, second) == pytest.approx(expected)


@pytest.mark.parametrize(("n", "m"), [(40, 60), (5, 40), (4, 5)])
def test_it_is_the_formula_also_where_covariances_are_singular(n, m):
    first, second = features(n, 8, 0), features(m, 8, 1)
    cov_1, cov_2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    gap = ((first.mean(0) - second.mean(0)) ** 2).sum()
    # tr (S_1 S_2)^(1/2) = tr (S_1^(1/2) S_2 S_1^(1/2))^(1/2), of which the square root is stable.
    root = np.real(sqrtm(cov_1))
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ cov_2 @ root), 0, None)).sum()
    expected = gap + np.trace(cov_1) + np.trace(cov_2) - 2 * cross
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-8)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return torchvision.models.inception_v3(weights=None, aux_logits=False, transform_input=False, init_weights=False)


def test_the_published_format(net, tmp_path):
    """Names are torchvision's, with two heads in the place of one, which are left alone."""
    state = {name: value.half() for name, value in net.state_dict().items() if not name.startswith("fc.")}
    state |= {"fc1.weight": torch.zeros(2, 2048), "fc2.bias": torch.zeros(2), "AuxLogits1.fc.bias": torch.zeros(2)}
    torch.save(state, tmp_path / ART_INCEPTION.path)
    images = torch.rand(1, 3, 80, 80, generator=torch.Generator().manual_seed(1))
    found = load_art_inception(tmp_path)(images)
    (tmp_path / ART_INCEPTION.path).unlink()
    rounded = torchvision.models.inception_v3(weights=None, aux_logits=False, transform_input=False, init_weights=False)
    rounded.load_state_dict({n: v.half().to(v.dtype) for n, v in net.state_dict().items()})
    rounded.fc = torch.nn.Identity()
    with torch.inference_mode():
        expected = rounded.eval()(interpolate(images, size=(512, 512), mode="bilinear", antialias=True))
    assert found.shape == (1, 2048)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_missing_and_wrong_files(tmp_path):
    with pytest.raises(MissingWeights, match=r"ArtFID needs the weights .*art_inception.pth: put the file from https://"):
        load_art_inception(tmp_path)
    torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(1)}, tmp_path / ART_INCEPTION.path)
    with pytest.raises(UserError, match="not the expected file"):
        load_art_inception(tmp_path)

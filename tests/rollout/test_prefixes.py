"""The images of unfinished trajectories."""

from __future__ import annotations

import pytest
import small_model
import torch

from rollout.config import RolloutConfig
from rollout.prefixes import images_to_score
from rollout.sampler import GroupSampler
from stylevar.contracts import PolicyVersion
from stylevar.images import pm1_to_u8


@pytest.mark.parametrize("at_once", [0, 1, 4])
def test_prefixes_are_decoded_scale_by_scale_and_end_in_the_image(at_once):
    model = small_model.build()
    drawn = GroupSampler(model, RolloutConfig(group=3)).sample(small_model.batch(model, 2), 0, 0, PolicyVersion(0, 0))
    assert images_to_score(model.vae, drawn, "none") is drawn.images
    assert images_to_score(model.vae, drawn, "map") is drawn.images
    found = images_to_score(model.vae, drawn, "prefixes", at_once)
    assert found.shape == (2, 3, 3, 3, 12, 12)
    assert found.dtype == torch.uint8
    assert torch.equal(found[:, :, -1], drawn.images)
    tokens = drawn.tokens[1, 2:3].long()
    first = model.vae.quantize.embed(tokens[:, :1], 0)
    second = first + model.vae.quantize.embed(tokens[:, 1:5], 1)
    for scale, f_hat in enumerate((first, second)):
        alone = pm1_to_u8(model.vae.fhat_to_img(f_hat))[0]
        assert (found[1, 2, scale].int() - alone.int()).abs().max() <= 1
    assert not torch.equal(found[:, :, 0], found[:, :, 1])

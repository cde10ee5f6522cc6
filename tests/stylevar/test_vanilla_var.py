"""Starting SFT from a class-conditional VAR."""

from __future__ import annotations

import re

import pytest
import small_model
import torch
from checkpoint_files import assert_same, copied, refused
from torchvision.models import resnet18

from stylevar.checkpoint import (
    is_vanilla_var,
    load_pair,
    load_vanilla_var,
)


def vanilla_state(model):
    """What the model would have been before it had two images: one attention matrix, class embeddings, no encoders."""
    state, expected = {}, {}
    for key, value in model.state_dict().items():
        if "_encoder." in key or key.startswith("feat_emb.") or ".zero_k_bias_" in key:
            continue
        value = torch.randn_like(value) if value.is_floating_point() and "attn_bias_for" not in key else value.clone()
        if "_target" in key:
            expected[key] = expected[key.replace("_target", "_guide")]
            continue
        expected[key] = value
        state[key.replace("_guide", "")] = value
    state["class_emb.weight"] = torch.randn(1001, model.arch.width)
    for i in range(model.arch.depth):
        state[f"blocks.{i}.attn.zero_k_bias"] = torch.zeros(model.arch.width)
    return state, expected


@pytest.fixture(scope="module")
def imagenet_encoder():
    net = resnet18()
    with torch.no_grad():
        for name, buffer in net.named_buffers():
            if "running" in name:
                buffer.copy_(torch.rand_like(buffer) + 0.5)
            else:
                buffer.fill_(77)
    return net.state_dict()


@pytest.fixture
def start():
    """A model to be filled, with full-size encoders."""
    torch.manual_seed(5)
    return small_model.build(depth=1, style_enc_dim=512)


def test_vanilla_var_fills_every_weight(start, imagenet_encoder):
    state, expected = vanilla_state(start)
    before = copied(start.state_dict())
    assert is_vanilla_var(state)
    assert not is_vanilla_var(before)
    load_vanilla_var(start, state, "var.pth", imagenet_encoder)
    after = start.state_dict()
    for key, value in expected.items():
        assert torch.equal(after[key], value), key
    unchanged = [k for k in after if k not in expected and "_encoder." not in k]
    assert unchanged == [
        "blocks.0.attn.zero_k_bias_guide",
        "blocks.0.attn.zero_k_bias_target",
        "feat_emb.weight",
        "feat_emb.bias",
    ] or sorted(unchanged) == sorted(
        ["feat_emb.weight", "feat_emb.bias"] + [f"blocks.0.attn.zero_k_bias_{s}" for s in ("guide", "target")]
    )
    assert all(torch.equal(after[k], before[k]) for k in unchanged)
    assert torch.equal(after["blocks.0.attn.mat_qkv_guide.weight"], after["blocks.0.attn.mat_qkv_target.weight"])


def test_vanilla_var_starts_both_encoders_from_resnet18(start, imagenet_encoder):
    load_vanilla_var(start, vanilla_state(start)[0], "var.pth", imagenet_encoder)
    net = resnet18()
    net.load_state_dict(imagenet_encoder)
    net.fc = torch.nn.Identity()
    net.eval()
    image = torch.rand(1, 3, 40, 40) * 2 - 1
    for encoder in (start.style_encoder, start.content_encoder):
        ours, theirs = encoder.state_dict(), net.state_dict()
        assert len(ours) == len(theirs) == 120
        for (a, mine), (b, its) in zip(ours.items(), theirs.items(), strict=True):
            assert torch.equal(mine, its), (a, b)
        assert sum("running_" in k for k in ours) == 40
        with torch.no_grad():
            assert torch.equal(encoder(image).flatten(1), net(image))


@pytest.mark.parametrize(
    "key", ["blocks.0.attn.mat_qkv.weight", "blocks.0.attn.q_bias", "pos_1LC", "head_nm.ada_lin.1.bias"]
)
def test_vanilla_var_with_a_missing_key(start, imagenet_encoder, key):
    state, _ = vanilla_state(start)
    before = copied(start.state_dict())
    del state[key]
    with refused("var.pth", "missing", re.escape(key.split("mat_qkv")[0].split("q_bias")[0])):
        load_vanilla_var(start, state, "var.pth", imagenet_encoder)
    assert_same(start.state_dict(), before)


def test_vanilla_var_accounts_for_every_key(start, imagenet_encoder):
    state, _ = vanilla_state(start)
    with refused("1 unexpected", r"rope\.freqs"):
        load_vanilla_var(start, {**state, "rope.freqs": torch.zeros(1)}, "var.pth", imagenet_encoder)
    incomplete = {k: v for k, v in imagenet_encoder.items() if k != "layer4.1.bn2.running_var"}
    with refused("2 missing", r"style_encoder\.7\.1\.bn2\.running_var"):
        load_vanilla_var(start, state, "var.pth", incomplete)
    with refused("2 unexpected", r"style_encoder\.layer5\.0\.weight"):
        load_vanilla_var(start, state, "var.pth", {**imagenet_encoder, "layer5.0.weight": torch.zeros(1)})


def test_vanilla_var_is_no_init(model, vae_file, tmp_path):
    torch.save(vanilla_state(model)[0], tmp_path / "var_d2.pth")
    with refused("vanilla VAR", "from which SFT starts"):
        load_pair(str(tmp_path / "var_d2.pth"), vae_file)

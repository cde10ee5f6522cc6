"""DreamSim from local files, against the package itself, on random weights in the package's file formats."""

import json
import shutil
import socket

import pytest
import torch
from dreamsim import dreamsim
from dreamsim.feature_extraction.vision_transformer import DINOHead, vit_base
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.transforms.v2 import functional as tv

from reward.build import build_distance
from reward.config import RewardConfig
from reward.dreamsim import DINO_FULL_FILE, DINO_HUB_FILE, DreamSimDistance, _dino_backbone
from reward.scorer import RewardScorer
from stylevar.contracts import References
from stylevar.errors import UserError

RANK = 4


def _write_lora(folder, targets=("qkv",)):
    folder.mkdir()
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8.0, "lora_dropout": 0.3, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": list(targets)}))
    weights = {}
    for block in range(12):
        name = f"base_model.model.extractor_list.0.model.blocks.{block}.attn.qkv"
        weights[f"{name}.lora_A.weight"] = torch.randn(RANK, 768) / 28
        weights[f"{name}.lora_B.weight"] = torch.randn(2304, RANK) / 4
    save_file(weights, folder / "adapter_model.safetensors")


def _random_vit(patch_size):
    """A backbone with nothing left at zero."""
    vit = vit_base(patch_size=patch_size)
    nn.init.normal_(vit.pos_embed, std=0.5)
    nn.init.normal_(vit.cls_token, std=0.5)
    return vit


def _half(state):
    """Half precision on disk, to write half as much; loading converts."""
    return {name: value.half() for name, value in state.items()}


@pytest.fixture(scope="module")
def clip_cache(tmp_path_factory):
    torch.manual_seed(0)
    cache = tmp_path_factory.mktemp("clip")
    vit = _random_vit(32)
    vit.pos_drop = nn.LayerNorm(768)
    state = _half(vit.state_dict()) | {"proj": torch.randn(768, 512)}
    torch.save({"state_dict": state}, cache / "clip_vitb32_pretrain.pth.tar")
    _write_lora(cache / "clip_vitb32_single_lora")
    yield cache
    shutil.rmtree(cache)


@pytest.fixture(scope="module")
def dino_cache(tmp_path_factory):
    torch.manual_seed(1)
    cache = tmp_path_factory.mktemp("dino")
    head = {f"module.head.{name}": value for name, value in DINOHead(768, 2048).state_dict().items()}
    head["module.head.last_layer.weight"] = torch.randn(2048, 256)
    backbone = {f"backbone.{name}": value for name, value in _half(_random_vit(16).state_dict()).items()}
    torch.save({"student": head, "teacher": backbone}, cache / DINO_FULL_FILE)
    _write_lora(cache / "dino_vitb16_single_lora")
    yield cache
    shutil.rmtree(cache)


@pytest.fixture(scope="module")
def clip(clip_cache):
    """Our distance and what the package's own `dreamsim(...)` returns, from the same files."""
    return DreamSimDistance("clip_vitb32", clip_cache), dreamsim(True, "cpu", str(clip_cache), dreamsim_type="clip_vitb32")


@pytest.fixture
def images():
    """fp32 [3, 3, 48, 40] in [0, 1]."""
    return torch.rand(3, 3, 48, 40, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("reached for the network")

    monkeypatch.setattr(torch.hub, "load", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def _assert_equal_to_package(ours, package, images):
    """`package` is what `dreamsim(...)` returned; images fp32 [3, 3, H, W]."""
    model, _ = package
    at_224 = tv.resize(images, [224, 224], tv.InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    with torch.inference_mode():
        expected = model(at_224[:1].expand(2, -1, -1, -1), at_224[1:])
        total = ours.distance(ours.embed_targets(images[:1]), images[None, 1:])["total"]
        alone = ours.distance(ours.embed_targets(images[1:2]), images[None, 1:2])["total"]
    assert total.shape == (1, 2)
    torch.testing.assert_close(total[0], expected, atol=1e-5, rtol=0)
    assert (expected > 0.01).all()
    assert abs(alone.item()) < 1e-5


def test_clip_equals_the_package(clip, images):
    _assert_equal_to_package(*clip, images)


def test_dino_equals_the_package_without_the_hub(dino_cache, images, offline, monkeypatch):
    hub_folder = torch.hub.get_dir()
    ours = DreamSimDistance("dino_vitb16", dino_cache)
    assert torch.hub.get_dir() == hub_folder

    vit = vit_base(patch_size=16)
    vit.load_state_dict(_dino_backbone(dino_cache))
    monkeypatch.setattr(torch.hub, "load", lambda *args: vit)
    try:
        package = dreamsim(device="cpu", cache_dir=str(dino_cache), dreamsim_type="dino_vitb16")
    finally:
        torch.hub.set_dir(hub_folder)
    _assert_equal_to_package(ours, package, images)


def test_scorer_runs_on_dreamsim(clip_cache, images, offline):
    config = RewardConfig(reward="dreamsim", dreamsim_type="clip_vitb32", dreamsim_cache=str(clip_cache))
    distance = build_distance(config)
    assert distance.name == "dreamsim_clip_vitb32"
    assert not any(parameter.requires_grad for parameter in distance.parameters())
    u8 = (images * 255).to(torch.uint8)
    rewards = RewardScorer(distance).score(u8[None], References(u8[:1])).rewards
    assert rewards.shape == (1, 3)
    assert rewards[0, 0].abs() < 1e-4
    assert (rewards[0, 1:] < -0.05).all()


def test_resize_is_that_of_the_package(clip, monkeypatch):
    """Tensors are resized as the package resizes PIL images, up to its two roundings to 8 bits."""
    ours, (_, preprocess) = clip
    seen = []
    monkeypatch.setattr(ours.model, "embed", lambda at_224: seen.append(at_224) or torch.zeros(1, 512))
    for size in ((40, 48), (300, 260)):
        # Mid-range values: PIL also clips between its two passes.
        u8 = torch.randint(80, 176, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
        ours.embed(u8[None].float() / 255)
        expected = preprocess(Image.fromarray(u8.permute(1, 2, 0).numpy()))
        torch.testing.assert_close(seen.pop(), expected, atol=1.5 / 255, rtol=0)


def test_missing_weights_name_files_and_source(tmp_path, offline):
    with pytest.raises(UserError) as caught:
        DreamSimDistance("clip_vitb32", tmp_path / "nowhere")
    for part in ("clip_vitb32_pretrain.pth.tar", "clip_vitb32_single_lora/adapter_config.json", "adapter_model"):
        assert str(tmp_path / "nowhere") in str(caught.value)
        assert part in str(caught.value)
    assert "dreamsim_clip_vitb32_checkpoint.zip" in str(caught.value)
    assert not (tmp_path / "nowhere").exists()

    with pytest.raises(UserError, match="dino_vitb16_pretrain.pth or .*checkpoints/dino_vitbase16_pretrain.pth") as caught:
        DreamSimDistance("ensemble", tmp_path)
    for part in ("open_clip_vitb16_pretrain.pth.tar", "/clip_vitb16_pretrain.pth.tar", "ensemble_lora", "_ensemble_"):
        assert part in str(caught.value)


def test_unusable_weights_are_a_user_error(clip_cache, tmp_path, offline):
    (tmp_path / "clip_vitb32_pretrain.pth.tar").write_bytes(b"truncated")
    shutil.copytree(clip_cache / "clip_vitb32_single_lora", tmp_path / "clip_vitb32_single_lora")
    with pytest.raises(UserError, match="unpack .*clip_vitb32_checkpoint.zip there again"):
        DreamSimDistance("clip_vitb32", tmp_path)


def test_adapters_that_miss_a_layer_are_refused(clip_cache, tmp_path, offline):
    (tmp_path / "clip_vitb32_pretrain.pth.tar").symlink_to(clip_cache / "clip_vitb32_pretrain.pth.tar")
    _write_lora(tmp_path / "clip_vitb32_single_lora", targets=("qkv", "fc1"))
    with pytest.raises(UserError, match="lacks 24 LoRA weights"):
        DreamSimDistance("clip_vitb32", tmp_path)


def test_bad_settings_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="'dinov2_vitb14'.*dino_vitb16"):
        DreamSimDistance("dinov2_vitb14", tmp_path)
    with pytest.raises(UserError, match="dreamsim_cache"):
        build_distance(RewardConfig(reward="dreamsim"))


def test_dino_backbone_is_the_teacher_unless_only_the_student_is_there(tmp_path):
    """The hub serves the teacher, and the adapters were trained on it."""
    one, two, three = (torch.full((1,), float(i)) for i in (1, 2, 3))
    full = {"student": {"module.backbone.cls_token": one, "module.head.mlp.0.weight": three}}
    torch.save(full, tmp_path / DINO_FULL_FILE)
    with pytest.warns(UserWarning, match="dino_vitbase16_pretrain.pth"):
        assert _dino_backbone(tmp_path) == {"cls_token": one}
    torch.save(full | {"teacher": {"backbone.cls_token": two}}, tmp_path / DINO_FULL_FILE)
    assert _dino_backbone(tmp_path) == {"cls_token": two}
    (tmp_path / "checkpoints").mkdir()
    torch.save({"cls_token": three}, tmp_path / DINO_HUB_FILE)
    assert _dino_backbone(tmp_path) == {"cls_token": three}

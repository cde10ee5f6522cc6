"""Distances through published networks, on random weights in the published formats."""

from __future__ import annotations

import shutil

import metric_weights
import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional.image.lpips import _LPIPS
from torchvision.transforms.v2 import functional as tv

from reward.build import build_distance
from reward.cells import CELLS
from reward.config import RewardConfig
from reward.lpips import VGG16
from reward.scorer import build_scorer
from reward.vgg import VGG19, FeatureMaps, _structure_kl, gram_matrix
from stylevar.contracts import References
from stylevar.errors import UserError

VGG_METRICS = ("style", "content", "cfsd", "lpips", "lpips_alex")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    metric_weights.write_vgg19(folder)
    metric_weights.write_vgg16(folder)
    metric_weights.write_alexnet(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def images():
    """fp32 [2, 3, 3, 40, 48] in [0, 1]: three images and three others."""
    return torch.rand(2, 3, 3, 40, 48, generator=torch.Generator().manual_seed(1))


def build(name, weights):
    return build_distance(RewardConfig(name, metric_weights=str(weights)))


@torch.inference_mode()
def totals(distance, first, second):
    return distance.compare(distance.embed(first), distance.embed(second))["total"]


@pytest.mark.parametrize("name", VGG_METRICS)
def test_it_is_a_frozen_distance(name, weights, images):
    distance = build(name, weights)
    assert distance.name == name
    assert not distance.train().training
    assert not any(p.requires_grad or p.is_meta for p in distance.parameters())
    together = totals(distance, *images)
    alone = torch.cat([totals(distance, a[None], b[None]) for a, b in zip(*images, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-7)
    assert (together > 0).all()
    torch.testing.assert_close(totals(distance, images[0], images[0]), torch.zeros(3), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("name", "net"), [("lpips", "vgg"), ("lpips_alex", "alex")])
def test_lpips_equals_torchmetrics(name, net, weights, images):
    distance = build(name, weights)
    theirs = _LPIPS(pretrained=True, net=net, pnet_rand=True, eval_mode=True)
    slices = [getattr(theirs.net, f"slice{i}") for i in range(1, 6)]
    for layers in slices:  # named by their number in torchvision's network
        layers.load_state_dict({n: distance.net.features.state_dict()[n] for n in layers.state_dict()})
    with torch.inference_mode():
        expected = theirs(*images, normalize=True).flatten()
    torch.testing.assert_close(totals(distance, *images), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["content", "lpips", "lpips_alex"])
def test_the_mean_of_the_map_is_the_distance(name, weights, images):
    distance = build(name, weights)
    with torch.inference_mode():
        components, cells = distance.distance_and_cells(distance.embed_targets(images[0]), images[1, :, None])
    assert cells.shape == (3, 1, CELLS, CELLS)
    torch.testing.assert_close(cells.mean((2, 3)), components["total"], atol=1e-7, rtol=1e-4)


def test_gram_of_a_constant_map():
    """F F^T / (C H W) with all features v: H W v^2 / (C H W)."""
    torch.testing.assert_close(gram_matrix(torch.full((1, 4, 3, 5), 3.0)), torch.full((1, 4, 4), 9 / 4))


def test_style_forgets_places_and_content_does_not(weights, images):
    """A horizontally cyclic picture moved by a multiple of all strides has the same features but at the border."""
    tile = images[0, :1, :, :32, :32].repeat(1, 1, 4, 4)
    moved = tile.roll(16, dims=-1)
    style, content = build("style", weights), build("content", weights)
    other = images[1, :1, :, :32, :32].repeat(1, 1, 4, 4)
    assert totals(style, tile, moved) < 0.1 * totals(style, tile, other)
    assert totals(content, tile, moved) > 0.5 * totals(content, tile, other)


def test_style_and_content_by_their_formulas(weights, images):
    """Convolution outputs before ReLU, of images normalised as ImageNet's."""
    net = FeatureMaps("vgg19", 28)
    net.load_state_dict(torch.load(weights / VGG19.path, weights_only=True))
    x, y = (tv.normalize(i, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) for i in images)
    style, content = 0.0, None
    for number, layer in enumerate(net.features):
        x, y = layer(x), layer(y)
        if number in (0, 5, 10, 19, 28):
            style = style + (gram_matrix(x) - gram_matrix(y)).square().mean((1, 2))
        if number == 21:
            content = (x - y).square().mean((1, 2, 3))
    torch.testing.assert_close(totals(build("style", weights), *images), style, rtol=1e-4, atol=0)
    torch.testing.assert_close(totals(build("content", weights), *images), content, rtol=1e-4, atol=0)


def test_cfsd_is_a_divergence_of_similarities():
    reference, generated = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(2))
    p, q = ((f @ f.T / 16).softmax(1) for f in (reference, generated))
    expected = F.kl_div(q.log(), p, reduction="sum")
    torch.testing.assert_close(_structure_kl(reference, generated), expected)
    assert _structure_kl(reference, generated) != _structure_kl(generated, reference)


def test_dino_equals_the_authors_network(tmp_path, images):
    vit = metric_weights.write_dino(tmp_path)
    distance = build("dino", tmp_path)
    shutil.rmtree(tmp_path)
    small = images[0, :2]
    with torch.inference_mode():
        at_224 = tv.resize(small, [224, 224], tv.InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
        expected = vit(tv.normalize(at_224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        (found,) = distance.embed(small)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_clip_equals_open_clip(tmp_path, images):
    """The published file holds the text half too; the package's own preprocessing rounds to 8 bits."""
    import open_clip
    from PIL import Image
    from safetensors.torch import save_file

    from reward.clip import CLIP_FILE

    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32", force_quick_gelu=True)
    path = tmp_path / CLIP_FILE.path
    path.parent.mkdir()
    save_file({name: value.contiguous() for name, value in model.eval().state_dict().items()}, path)
    distance = build("clip", tmp_path)
    shutil.rmtree(tmp_path)
    square = (images[0, :2, :, :40, :40] * 255).round().to(torch.uint8)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in square]
    with torch.inference_mode():
        expected = model.encode_image(torch.stack([preprocess(p) for p in pictures]))
        (found,) = distance.embed(square.float() / 255)
    assert (F.cosine_similarity(found, expected) > 0.9999).all()
    torch.testing.assert_close(found, expected, atol=0.02 * float(expected.std()), rtol=0.02)


@pytest.mark.parametrize(
    ("name", "file"),
    [("style", "vgg19-dcbb9e9d.pth"), ("lpips", "vgg16-397923af.pth"), ("dino", "dino_vitbase16_pretrain.pth")],
)
def test_missing_weights_say_what_to_put_where(name, file, tmp_path):
    with pytest.raises(UserError, match=rf"{name} needs the weights {file} \(from https://.*--metric-weights"):
        build_distance(RewardConfig(name))
    with pytest.raises(UserError, match=rf"{name} needs the weights {tmp_path}/{file}: put the file from https://"):
        build(name, tmp_path)


def test_missing_clip_weights_name_the_hub(tmp_path):
    with pytest.raises(UserError, match=r"open_clip_model.safetensors: put the file from https://huggingface.co/timm/vit"):
        build("clip", tmp_path)


def test_damaged_and_wrong_files_are_refused(weights, tmp_path):
    (tmp_path / VGG16.path).write_bytes(b"not weights")
    with pytest.raises(UserError, match="cannot be read as weights .*download it again from https://"):
        build("lpips", tmp_path)
    shutil.copy(weights / VGG16.path, tmp_path / VGG19.path)
    with pytest.raises(UserError, match="not the expected file: it (lacks|has another shape for) features"):
        build("style", tmp_path)


def test_files_that_hold_code_are_refused(tmp_path):
    torch.save({"features.0.weight": shutil.rmtree}, tmp_path / VGG19.path)
    with pytest.raises(UserError, match="cannot be read as weights"):
        build("style", tmp_path)


def test_a_network_distance_as_a_reward(weights, images):
    config = RewardConfig("lpips=2", metric_weights=str(weights))
    u8 = (images * 255).to(torch.uint8)
    scores = build_scorer(config).score(u8.transpose(0, 1).contiguous(), References(u8[0]))
    assert scores.rewards[:, 0].abs().max() < 1e-5
    torch.testing.assert_close(scores.rewards[:, 1], -2 * scores.components["total"][:, 1])

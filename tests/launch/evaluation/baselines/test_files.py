"""Weight files: each published kind with its own preprocessing, and no decoder with an encoder it was not trained with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import vgg_files
from safetensors.torch import save_file
from torchvision.transforms.functional import normalize

from launch.evaluation.baselines.build import BASELINES, build_baseline
from launch.evaluation.baselines.decoder import build_decoder, decoder_notes, load_decoder, save_decoder
from launch.evaluation.baselines.encoders import LiteEncoder, VggEncoder
from launch.evaluation.baselines.vgg_file import load_vgg
from stylevar.errors import UserError


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vgg")
    vgg_files.save(vgg_files.normalised(), folder / "normalised.pth")
    # torchvision's file goes on after relu4_1.
    rest = {"features.21.weight": torch.zeros(4, 4, 3, 3), "classifier.0.weight": torch.zeros(2, 2)}
    vgg_files.save(vgg_files.torchvision(), folder / "torchvision.pth", "features.", **rest)
    torch.save(build_decoder("vgg19-normalised").state_dict(), folder / "decoder.pth")
    for kind in ("normalised", "torchvision"):
        encoder = load_vgg(folder / f"{kind}.pth")
        save_decoder(build_decoder(encoder.kind), folder / f"decoder_{kind}.safetensors", encoder, {"steps": 7})
    save_decoder(build_decoder("lite"), folder / "decoder_lite.safetensors", LiteEncoder(), {})
    return folder


@pytest.mark.parametrize("kind", ["normalised", "torchvision"])
def test_features_are_those_of_the_published_network(files, kind):
    encoder = load_vgg(files / f"{kind}.pth")
    assert encoder.kind == f"vgg19-{kind}"
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    network = getattr(vgg_files, kind)()
    given = images if kind == "normalised" else normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        for level, layers in zip(encoder.levels(images), vgg_files.RELUS[encoder.kind], strict=True):
            torch.testing.assert_close(level, network[:layers](given), atol=1e-4, rtol=1e-4)


def test_files_of_before_zip_archives_are_read(files, tmp_path):
    state = torch.load(files / "normalised.pth", weights_only=True)
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, str(tmp_path / "new.safetensors"))
    fingerprints = {load_vgg(path).fingerprint() for path in (tmp_path / "old.pth", tmp_path / "new.safetensors")}
    assert fingerprints == {load_vgg(files / "normalised.pth").fingerprint()}


def test_decoder_has_the_published_layout():
    """Keys and shapes of the decoder.pth that goes with vgg_normalised.pth."""
    shapes = {key: list(value.shape[:2]) for key, value in build_decoder("vgg19-normalised").state_dict().items()}
    weights = {int(key.split(".")[0]): shape for key, shape in shapes.items() if key.endswith("weight")}
    assert weights == {
        1: [256, 512],
        5: [256, 256],
        8: [256, 256],
        11: [256, 256],
        14: [128, 256],
        18: [128, 128],
        21: [64, 128],
        25: [64, 64],
        28: [3, 64],
    }


@pytest.mark.parametrize("kind", ["vgg19-normalised", "vgg19-torchvision", "lite"])
def test_decoders_mirror_their_encoders(kind):
    encoder = LiteEncoder() if kind == "lite" else VggEncoder(kind)
    with torch.no_grad():
        assert build_decoder(kind)(encoder(torch.rand(2, 3, 32, 48))).shape == (2, 3, 32, 48)


@pytest.mark.parametrize(
    ("vgg", "decoder"),
    [
        ("normalised.pth", "decoder.pth"),
        ("normalised.pth", "decoder_normalised.safetensors"),
        ("torchvision.pth", "decoder_torchvision.safetensors"),
    ],
)
def test_fitting_pairs_stylise(files, vgg, decoder):
    method = build_baseline("adain", files / vgg, files / decoder, 0.5)
    assert method.name == "adain"
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    assert method.samples(images, images.flip(0), ("a", "b"), 1, 0).shape == (2, 1, 3, 16, 16)


@pytest.mark.parametrize(
    ("vgg", "decoder", "trained_with"),
    [
        ("torchvision.pth", "decoder.pth", "vgg19-normalised"),
        ("torchvision.pth", "decoder_normalised.safetensors", "vgg19-normalised"),
        ("normalised.pth", "decoder_torchvision.safetensors", "vgg19-torchvision"),
        ("normalised.pth", "decoder_lite.safetensors", "lite"),
    ],
)
def test_a_decoder_of_another_encoder_is_refused(files, vgg, decoder, trained_with):
    with pytest.raises(UserError, match=rf"{decoder} was trained with the encoder {trained_with}\b.*preprocessing differs"):
        build_baseline("adain", files / vgg, files / decoder)


def test_a_decoder_of_other_weights_is_refused(files, tmp_path):
    vgg_files.save(vgg_files.normalised(seed=1), tmp_path / "other.pth")
    with pytest.raises(UserError, match="trained with other weights of vgg19-normalised"):
        build_baseline("adain", tmp_path / "other.pth", files / "decoder_normalised.safetensors")


def test_without_files_it_is_adain_lite_by_name(files, caplog):
    assert build_baseline("adain").name == "adain-lite"
    assert "adain-lite" in caplog.text
    assert build_baseline("adain", None, files / "decoder_lite.safetensors").name == "adain-lite"


def test_what_is_missing_is_asked_for(files):
    with pytest.raises(UserError, match=r"normalised\.pth has no decoder: add its --adain-decoder"):
        build_baseline("adain", files / "normalised.pth")
    for decoder in ("decoder.pth", "decoder_torchvision.safetensors"):
        with pytest.raises(UserError, match="has no encoder: add its --adain-vgg"):
            build_baseline("adain", None, files / decoder)
    for nothing in ("none.pth", "none.safetensors"):
        with pytest.raises(UserError, match=r"none\.\w+ does not exist"):
            build_baseline("adain", None, files / nothing)
        with pytest.raises(UserError, match=r"none\.\w+ does not exist"):
            build_baseline("adain", files / nothing, files / "decoder.pth")


def test_other_networks_are_refused(files, tmp_path):
    state = torch.load(files / "torchvision.pth", weights_only=True)
    sixteen = {"features.16.weight": torch.zeros(512, 256, 3, 3)}  # VGG-16 has only three convolutions of 256
    batch_norm = {"features.1.running_mean": torch.zeros(64)}
    wrong = {
        "VGG-19: the weight of its layer 16": {**state, **sixteen},
        "batch normalisation": {**state, **batch_norm},
        "4 convolutions": {key: value for key, value in state.items() if key.split(".")[1] in "0257"},
        r"starts with conv1\.weight": {"conv1.weight": torch.zeros(64, 3, 7, 7)},
        "starts with list": [torch.zeros(1)],
        r"convolutions \(it starts with features.0.weight": {"features.0.weight": torch.zeros(3)},
    }
    for message, content in wrong.items():
        torch.save(content, tmp_path / "wrong.pth")
        with pytest.raises(UserError, match=message):
            load_vgg(tmp_path / "wrong.pth")


def test_code_and_damage_are_refused(files, tmp_path):
    (tmp_path / "cut.pth").write_bytes((files / "normalised.pth").read_bytes()[:10000])
    torch.save(vgg_files.normalised(), tmp_path / "module.pth")  # a pickled network, not its weights
    for name in ("cut.pth", "module.pth"):
        with pytest.raises(UserError, match=name):
            load_vgg(tmp_path / name)
    (tmp_path / "cut.safetensors").write_bytes((files / "decoder_lite.safetensors").read_bytes()[:10000])
    with pytest.raises(UserError, match=r"cut\.safetensors"):
        load_decoder(tmp_path / "cut.safetensors", load_vgg(files / "normalised.pth"))


def test_a_decoder_of_another_layout_is_refused(files, tmp_path):
    torch.save({"1.weight": torch.zeros(3, 3)}, tmp_path / "decoder.pth")
    with pytest.raises(UserError, match=r"decoder\.pth does not fit this model"):
        load_decoder(tmp_path / "decoder.pth", load_vgg(files / "normalised.pth"))


def test_decoder_keeps_its_notes_and_weights(files, tmp_path):
    encoder, decoder = load_vgg(files / "torchvision.pth"), build_decoder("vgg19-torchvision")
    save_decoder(decoder, tmp_path / "d.safetensors", encoder, {"steps": 7, "alpha": 1.0})
    notes = decoder_notes(tmp_path / "d.safetensors")
    assert (notes["encoder"], notes["steps"], notes["alpha"]) == ("vgg19-torchvision", "7", "1.0")
    assert "ImageNet" in notes["preprocessing"]
    loaded = load_decoder(tmp_path / "d.safetensors", encoder)
    for own, read in zip(decoder.parameters(), loaded.parameters(), strict=True):
        torch.testing.assert_close(own, read, atol=1e-3, rtol=1e-3)
        assert not read.requires_grad


def test_names_and_alpha():
    assert [build_baseline(name).name for name in BASELINES] == ["copy", "color-transfer", "adain-lite"]
    with pytest.raises(UserError, match=r"unknown method 'gatys': choose one of copy, color-transfer, adain"):
        build_baseline("gatys")
    with pytest.raises(UserError, match=r"^adain_alpha 1\.5: must lie in \[0, 1\]"):
        build_baseline("adain", adain_alpha=1.5)

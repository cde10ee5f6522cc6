"""Decoders that mirror an encoder, and their files, which record the encoder that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from launch.evaluation.baselines.encoders import Encoder, EncoderKind
from stylevar.atomic import file_aside
from stylevar.checkpoint import load_into
from stylevar.errors import UserError
from stylevar.weight_files import read_file

VGG_STAGES = (512, (256,), (256, 256, 256, 128), (128, 64), (64, 3))
"""The bottleneck's channels, then the output channels of the convolutions between upsamplings: the published layout."""
LITE_STAGES = (136, (96, 96), (64, 64), (32, 32), (24, 3))
PUBLISHED: EncoderKind = "vgg19-normalised"
"""The assumed encoder of a decoder file that names none, such as the published decoder.pth."""
TRAIN = "train one with launch/train_adain.py"


def build_decoder(kind: EncoderKind) -> nn.Sequential:
    """A decoder with random weights: bottleneck [N, C, H / 8, W / 8] -> RGB [N, 3, H, W].

    The output is in [0, 1] once trained, but not clamped. The layers are 3x3 convolutions with reflected borders, each but
    the last followed by a ReLU, and nearest-neighbour upsampling (Huang and Belongie 2017, section 6). The keys are those
    of the published decoder.pth.
    """
    channels, *stages = LITE_STAGES if kind == "lite" else VGG_STAGES
    layers: list[nn.Module] = []
    for number, widths in enumerate(stages):
        if number:
            layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
        for width in widths:
            layers += [nn.ReflectionPad2d(1), nn.Conv2d(channels, width, 3), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers[:-1])


def save_decoder(decoder: nn.Sequential, path: Path, encoder: Encoder, notes: Mapping[str, object]) -> None:
    """Write a decoder's weights in fp16 and facts about its encoder, atomically."""
    state = {key: value.detach().cpu().half().contiguous() for key, value in decoder.state_dict().items()}
    about = {"encoder": encoder.kind, "preprocessing": encoder.preprocessing, "encoder_weights": encoder.fingerprint()}
    with file_aside(path) as aside:
        save_file(state, str(aside), metadata={**about, **{key: str(value) for key, value in notes.items()}})


def decoder_notes(path: Path) -> dict[str, str]:
    """The metadata of a decoder's file; empty for a .pth file, and if it names no encoder. UserError without the file."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: check the path, or {TRAIN}")
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(str(path), framework="pt") as file:
            notes = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is not a readable decoder ({error}): copy it again, or {TRAIN}") from error
    return notes if "encoder" in notes else {}


def load_decoder(path: Path, encoder: Encoder) -> nn.Sequential:
    """Load a decoder, frozen and in eval mode, for use with `encoder`.

    UserError if the file is unreadable or has another layout, or if the decoder was trained with an encoder of different
    preprocessing or weights, because the pictures would look plausible but be wrong.
    """
    notes = decoder_notes(path)
    trained_with = notes.get("encoder", PUBLISHED)
    if trained_with != encoder.kind:
        unsaid = "" if notes else " (assumed, because the file names no encoder)"
        raise UserError(
            f"{path} was trained with the encoder {trained_with}{unsaid}, whose preprocessing differs from "
            f"that of {encoder.kind} ({encoder.preprocessing}): give the encoder that it was trained with, or {TRAIN}"
        )
    known = notes.get("encoder_weights", encoder.fingerprint())
    if known != encoder.fingerprint():
        raise UserError(
            f"{path} was trained with other weights of {encoder.kind} ({known}, not "
            f"{encoder.fingerprint()}): give the VGG file that it was trained with, or {TRAIN}"
        )
    decoder, state = build_decoder(encoder.kind), read_file(path)
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path} is not a decoder: it should hold only the tensors 1.weight, 1.bias, ...")
    load_into(decoder, dict(state), str(path))
    return decoder.requires_grad_(False).eval()

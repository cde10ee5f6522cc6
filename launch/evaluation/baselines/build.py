"""Build a baseline from its name."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal, get_args

import torch

from launch.common.defaults import DEMO_ADAIN
from launch.evaluation.baselines.adain import AdaIN
from launch.evaluation.baselines.base import Baseline
from launch.evaluation.baselines.copy import ContentCopy
from launch.evaluation.baselines.decoder import decoder_notes, load_decoder
from launch.evaluation.baselines.encoders import Encoder, LiteEncoder
from launch.evaluation.baselines.reinhard import ColorTransfer
from launch.evaluation.baselines.vgg_file import FILES, load_vgg
from stylevar.errors import UserError

BaselineName = Literal["copy", "color-transfer", "adain"]
BASELINES: tuple[BaselineName, ...] = get_args(BaselineName)

logger = logging.getLogger(__name__)


def build_baseline(
    name: str,
    adain_vgg: Path | None = None,
    adain_decoder: Path | None = None,
    adain_alpha: float = 1.0,
    device: torch.device | str = "cpu",
) -> Baseline:
    """The baseline of this name on `device`. Settings that start with `adain_` apply only to AdaIN.

    `adain` needs the files of its encoder and decoder. Without an encoder it becomes the built-in `adain-lite`, whose
    decoder was trained on the demo set. Raises UserError for an unknown name, unusable files, or files that do not match.
    """
    if name == ContentCopy.name:
        return ContentCopy(device)
    if name == ColorTransfer.name:
        return ColorTransfer(device)
    if name != "adain":
        raise UserError(f"unknown method {name!r}: choose one of {', '.join(BASELINES)}")
    if not 0 <= adain_alpha <= 1:
        raise UserError(f"adain_alpha {adain_alpha}: must lie in [0, 1], from the unchanged content to full style")
    encoder: Encoder
    if adain_vgg is not None:
        if adain_decoder is None:
            raise UserError(
                f"--adain-vgg {adain_vgg} has no decoder: add its --adain-decoder, or train one with launch/train_adain.py"
            )
        encoder = load_vgg(adain_vgg)
    elif adain_decoder is None or decoder_notes(adain_decoder).get("encoder") == "lite":
        encoder = LiteEncoder()
        logger.warning("adain without --adain-vgg: this is adain-lite, with EfficientNet-Lite0 instead of VGG-19")
    else:
        raise UserError(f"--adain-decoder {adain_decoder} has no encoder: add its --adain-vgg, {FILES}")
    return AdaIN(encoder, load_decoder(adain_decoder or DEMO_ADAIN, encoder), adain_alpha, device)

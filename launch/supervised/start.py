"""The model that SFT starts from: a StyleVAR checkpoint, a vanilla VAR, or fresh weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from launch.configs.sft import SftConfig
from stylevar.build import build_from_config
from stylevar.checkpoint import (
    MODEL_FILE,
    VAE_FILE,
    infer_config,
    is_vanilla_var,
    load_into,
    load_pair,
    load_vanilla_var,
    read_model_state,
    read_vae_state,
)
from stylevar.errors import UserError
from stylevar.hub import fetch
from stylevar.transformer import StyleVAR
from stylevar.weight_files import read_file

RESNET18 = "https://download.pytorch.org/models/resnet18-f37072fd.pth"


def starting_model(config: SftConfig) -> StyleVAR:
    """The model with its frozen tokenizer, on CPU and in eval mode, from `--init`, `--var` or the shape flags."""
    torch.manual_seed(config.seed)
    if config.init is not None:
        return load_pair(config.init, config.vae, config.alphas)[1]
    if config.var is not None:
        return _from_vanilla(config, config.var)
    vae, model = build_from_config(config.shape.model_config(config.alphas))
    load_into(vae, read_vae_state(fetch(config.vae, VAE_FILE)), config.vae)
    return model


def _from_vanilla(config: SftConfig, var: str) -> StyleVAR:
    if config.image_encoder is None:
        raise UserError(
            f"--var needs --image-encoder, the ImageNet weights of torchvision's ResNet-18: fetch {RESNET18} "
            "and give its path"
        )
    state = read_model_state(fetch(var, MODEL_FILE))
    if not is_vanilla_var(state):
        raise UserError(f"{var} is not a vanilla VAR (no key blocks.0.attn.mat_qkv.weight): start a StyleVAR with --init")
    encoder, vae_state = read_file(Path(config.image_encoder)), read_vae_state(fetch(config.vae, VAE_FILE))
    if "layer4.1.bn2.weight" not in encoder:
        raise UserError(f"{config.image_encoder} is not torchvision's ResNet-18 (no layer4.1.bn2.weight): see {RESNET18}")
    # Only the encoders' width cannot be read from a vanilla model.
    shaped = {**state, "feat_emb.weight": encoder["layer4.1.bn2.weight"].unsqueeze(0)}
    arch = infer_config(shaped, vae_state)
    if config.alphas is not None:
        arch = dataclasses.replace(arch, alphas=config.alphas)
    vae, model = build_from_config(arch)
    load_into(vae, vae_state, config.vae)
    load_vanilla_var(model, state, var, encoder)
    return model

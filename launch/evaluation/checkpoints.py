"""A model from whatever a checkpoint is: weights, or a GRPO run's adapters on the base that they belong to."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
import yaml

from launch.configs.grpo import GrpoConfig, load_config
from launch.run.newest_run import is_run
from learner.grpo.trainer import ADAPTER, FACTS, saved_base
from stylevar.checkpoint import VAE_FILE, load_into, load_pair
from stylevar.errors import UserError
from stylevar.hub import followed
from stylevar.policy import Policy
from stylevar.transformer import StyleVAR


def load_model(source: str, vae: str | None = None) -> StyleVAR:
    """The model behind `source`, in eval mode on CPU, with its tokenizer as `model.vae`.

    Args:
        source: a file, a folder, a hub id, a run (its finished model), or a checkpoint's folder in a GRPO run.
        vae: its VQ-VAE; by default the one beside it, or the one that its run was started with.
    Raises:
        UserError: there is no model, or no VQ-VAE is known.
    """
    path = followed(Path(source))
    if is_run(path):
        if not (path / "model").is_dir():
            raise UserError(f"run {source} has no finished model yet: give {source}/checkpoints/latest or best")
        path = path / "model"
        source = str(path)
    run = _run_of(path)
    if (path / FACTS).is_file():
        if run is None:
            raise UserError(f"{source} holds adapters, and no config.yaml of their run lies above it: keep it in its run")
        return _with_adapters(path, load_config(run / "config.yaml"), vae)
    if vae is None:
        vae = _vae_of(path, run)
    if vae is None:
        raise UserError(f"{source} has no {VAE_FILE} beside it and belongs to no run: name its VQ-VAE with --vae")
    return load_pair(source, vae)[1]


def weight_files(source: str) -> list[Path]:
    """The local files that decide what `source` gives, to notice when they have changed."""
    path = followed(Path(source))
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.suffix in (".safetensors", ".json", ".pth", ".pt"))
    return [path] if path.is_file() else []


def _with_adapters(checkpoint: Path, config: GrpoConfig, vae: str | None) -> StyleVAR:
    """The adapters of `checkpoint`, baked into the base that it names."""
    base, version = saved_base(checkpoint)
    source = dataclasses.replace(config.policy_source(), base=base, version=version, precision="fp32", tf32=False)
    if vae is not None:
        source = dataclasses.replace(source, vae=vae)
    policy = Policy(source, torch.device("cpu"))
    policy.adapters.load_folder(checkpoint / ADAPTER)
    state = policy.adapters.baked_state()
    model = load_pair(source.init, source.vae, source.alphas, source.revision)[1]
    load_into(model, state, str(checkpoint))
    return model


def _run_of(path: Path) -> Path | None:
    """The run's folder that holds `path`, or None."""
    if not path.exists():
        return None
    return next((folder for folder in list(path.resolve().parents)[:3] if is_run(folder)), None)


def _vae_of(path: Path, run: Path | None) -> str | None:
    folder = path if path.is_dir() else path.parent
    if path.exists() and (folder / VAE_FILE).is_file():
        return str(folder / VAE_FILE)
    if run is not None:
        vae = (yaml.safe_load((run / "config.yaml").read_text()) or {}).get("vae")  # of SFT or of GRPO
        return None if vae is None else str(vae)
    return None if path.exists() else str(path)  # a hub repository may hold both

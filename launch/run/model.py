"""The model behind a run, one of its checkpoints or merges, a file of weights, or a hub id."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from launch.configs.grpo import GrpoConfig, load_config
from launch.run.run_folder import LINKS, is_run, run_of
from learner.grpo.trainer import ADAPTER, FACTS, saved_base
from stylevar.adapters import fingerprint
from stylevar.build import build_from_config
from stylevar.checkpoint import (
    MODEL_FILE,
    VAE_FILE,
    State,
    bake_lora,
    config_beside,
    fitted,
    infer_config,
    is_vanilla_var,
    load_into,
    load_pair,
    read_file,
    read_model_state,
    read_vae_state,
)
from stylevar.config import ModelConfig
from stylevar.errors import UserError
from stylevar.hub import fetch, followed
from stylevar.policy import Policy
from stylevar.transformer import StyleVAR

Take = Literal["final", "best", "latest"]
_PEFT = "base_model.model."


@dataclass(frozen=True)
class Release:
    """A model as it is to be written: `state` has the released names in their order, adapters baked in, all fp32.

    `run` is the folder of the run that it comes from, `vae` (with `revision`, on the hub) its VQ-VAE, or None if that is not
    known, `origin` what to call it, `baked` whether adapters were added to a base.
    """

    state: State
    arch: ModelConfig
    run: Path | None
    vae: str | None
    revision: str | None
    origin: str
    baked: bool


def load_release(
    source: str,
    take: Take = "final",
    base: str | None = None,
    vae: str | None = None,
    alphas: tuple[float, ...] | None = None,
    revision: str | None = None,
) -> Release:
    """The model behind `source`: a run, a folder in it, a file or folder of weights, or a hub id.

    Args:
        take: of a run, its finished model, or its best or latest checkpoint.
        base: where the model that adapters stand on lies, if it has moved since.
        vae: the VQ-VAE; by default the run's.
        alphas: in place of those saved with the model.
    Raises:
        UserError: there is nothing of that kind, it is incomplete, or it does not give the weights that were saved.
    """
    path = followed(Path(source))
    run = run_of(path)
    if run is not None and run == path:
        path = _taken(run, take)
    settings = _settings(path, run)
    vae, revision = vae or settings.get("vae"), revision or settings.get("revision")
    baked = (path / FACTS).is_file()
    if baked:
        state, arch = _adapted(path, settings, base)
    else:
        source = source if run is None else str(path)
        state = read_model_state(fetch(source, MODEL_FILE, revision))
        if is_vanilla_var(state):
            raise UserError(f"{source} is a vanilla VAR checkpoint, the start of SFT, not a StyleVAR: train it first")
        arch = config_beside(source, revision) or _architecture(source, state, vae, revision)
    if alphas is not None:
        arch = replace(arch, alphas=alphas)
    state = fitted(build_from_config(arch, "meta")[1], state, str(path))
    if baked:
        _check_weights(path, state)
    return Release(state, arch, run, vae, revision, str(path) if run else source, baked)


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
    run = run_of(path)
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


def _taken(run: Path, take: Take) -> Path:
    path = run / "model" if take == "final" else followed(run / "checkpoints" / take)
    if path.is_dir():
        return path.resolve() if take != "final" else path
    others = [name for name in LINKS if followed(run / "checkpoints" / name).is_dir()]
    if not others:
        raise UserError(f"run {run} holds neither a finished model nor a checkpoint yet: let it go on to its first one")
    what = "is not finished, it has no model yet" if take == "final" else f"has no {take} checkpoint"
    raise UserError(f"run {run} {what}: give --take {' or --take '.join(others)}")


def _settings(path: Path, run: Path | None) -> dict[str, Any]:
    """The settings that a checkpoint was made with; without any run none."""
    files = [path / "run_config.yaml", *([] if run is None else [run / "config.yaml"])]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return {}
    try:
        values = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{file} is no YAML ({str(error).splitlines()[0]}): restore the run's config") from error
    return values if isinstance(values, dict) else {}


def _architecture(source: str, state: State, vae: str | None, revision: str | None) -> ModelConfig:
    """That of weights without a config beside them, which say nothing of their VQ-VAE's."""
    if vae is None:
        raise UserError(f"{source} has no config.json beside it: give its VQ-VAE with --vae, which tells the rest")
    try:
        return infer_config(state, read_vae_state(fetch(vae, VAE_FILE, revision)))
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"no architecture fits {source} with {vae} (missing: {error}): give a complete StyleVAR and its VQ-VAE"
        ) from error


def _adapted(checkpoint: Path, settings: dict[str, Any], base: str | None) -> tuple[State, ModelConfig]:
    """A GRPO checkpoint's adapters, added to the base that it names."""
    merged, _ = saved_base(checkpoint)
    base = base or merged or settings.get("init")
    if base is None:
        raise UserError(f"{checkpoint} does not say which base its adapters stand on: give --base")
    try:
        state = read_model_state(fetch(base, MODEL_FILE, settings.get("revision")))
    except UserError as error:
        raise UserError(f"the base of {checkpoint}: {error}; if it has moved, give its new place with --base") from error
    return add_adapters(state, checkpoint / ADAPTER), ModelConfig.load(checkpoint / "config.json")


def add_adapters(state: State, folder: Path) -> State:
    """W + s B A for every layer that the PEFT adapters in `folder` are made for, as the policy itself computes it."""
    try:
        settings = json.loads((folder / "adapter_config.json").read_text())
        scale = settings["lora_alpha"] / settings["r"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} holds no readable adapter_config.json ({error}): take another checkpoint") from error
    adapters: State = {k.removeprefix(_PEFT): v for k, v in read_file(folder / "adapter_model.safetensors").items()}
    layers = {name.rpartition(".lora_")[0] for name in adapters}
    if unknown := sorted(layer for layer in layers if f"{layer}.weight" not in state):
        raise UserError(f"{folder} holds adapters for {unknown[0]}, which its base lacks: their sizes do not fit")
    parted = {(f"{k[:-7]}.base_weight" if k[:-7] in layers and k.endswith(".weight") else k): v for k, v in state.items()}
    return bake_lora({**parted, **adapters}, str(folder), scale)


def _check_weights(checkpoint: Path, state: State) -> None:
    """Refuse weights that are not those that were saved: their base is another one now.

    On a GPU sums come out differently in the last bits, so that only what a CPU saved can be told for sure.
    """
    facts = json.loads((checkpoint / FACTS).read_text())
    if facts.get("device") == "cpu" and fingerprint(state) != facts["fingerprint"]:
        raise UserError(
            f"{checkpoint} does not give the weights it was saved from: its base is another model now; give the old "
            f"one with --base"
        )


def _with_adapters(checkpoint: Path, config: GrpoConfig, vae: str | None) -> StyleVAR:
    """The adapters of `checkpoint`, baked into the base that it names."""
    base, version = saved_base(checkpoint)
    source = replace(config.policy_source(), base=base, version=version, precision="fp32", tf32=False)
    if vae is not None:
        source = replace(source, vae=vae)
    policy = Policy(source, torch.device("cpu"))
    policy.adapters.load_folder(checkpoint / ADAPTER)
    state = policy.adapters.baked_state()
    model = load_pair(source.init, source.vae, source.alphas, source.revision)[1]
    load_into(model, state, str(checkpoint))
    return model


def _vae_of(path: Path, run: Path | None) -> str | None:
    folder = path if path.is_dir() else path.parent
    if path.exists() and (folder / VAE_FILE).is_file():
        return str(folder / VAE_FILE)
    if run is not None:
        vae = (yaml.safe_load((run / "config.yaml").read_text()) or {}).get("vae")  # of SFT or of GRPO
        return None if vae is None else str(vae)
    return None if path.exists() else str(path)  # a hub repository may hold both

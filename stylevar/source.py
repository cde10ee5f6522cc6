"""Locate a model's files from a user's path: weights, a run or a part of it, or a model on the hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stylevar.errors import BadSetting, UserError
from stylevar.hub import LINKS, adapters_only, fetch, fetch_beside, followed
from stylevar.text import clipped
from stylevar.text_files import read_record
from stylevar.yaml_files import read_yaml

MODEL_FILE, VAE_FILE, CONFIG_FILE = "model.safetensors", "vqvae.safetensors", "config.json"
ADAPTER, FACTS = "adapter", "worker.json"
"""In a checkpoint of a GRPO run: the folder of adapters, and the file that names their base."""
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""The files in a folder of adapters."""
ACCEPTED = "a file of weights, a model's folder, a run, one of its checkpoints or merges, or a hub id owner/name[:file]"
Take = Literal["final", "best", "latest"]


@dataclass(frozen=True)
class ModelFiles:
    """The locations of a model's parts.

    name      the model's name in messages
    weights   a file with all weights or, with `base`, a folder of adapters
    folder    the folder of a config or VQ-VAE that belongs to the model
    run       the run that the model comes from, if any; `settings` are that run's
    revision  of the files on the hub
    base      the base model of the adapters
    """

    name: str
    weights: Path
    folder: Path
    run: Path | None
    settings: Mapping[str, Any]
    revision: str | None
    base: ModelFiles | None = None

    def beside(self, file: str) -> Path | None:
        """The file of this name beside the weights, locally or on the hub; None if there is none."""
        return fetch_beside(self.name, self.folder, file, self.revision)

    def vae_file(self, vae: str | None = None) -> Path:
        """The file of the VQ-VAE `vae`; by default the one beside the weights, that of the run, or that of the base.

        BadSetting if none is known.
        """
        if vae is None and (beside := self.beside(VAE_FILE)) is not None:
            return beside
        vae = vae or self.settings.get("vae")
        if vae is None and self.base is not None:
            return self.base.vae_file()
        if vae is None:
            raise BadSetting("vae", None, f"{self.name} has no {VAE_FILE} beside it and belongs to no run: give its VQ-VAE")
        return fetch(vae, VAE_FILE, self.revision)


def locate(source: str, revision: str | None = None, base: str | None = None, take: Take = "final") -> ModelFiles:
    """Locate the files of the model `source`. Reads only settings.

    Args:
        source: a file of weights, a model's folder, PEFT adapters that name their base, a run, one of its checkpoints or
            merges, or a hub id `owner/name[:file]`.
        revision: branch, tag or commit on the hub; by default the run's.
        base: the base model of adapters, if it has moved.
        take: for a run, whether to take its finished model, or its best or latest checkpoint.
    Raises:
        UserError: there is no model, or a checkpoint's base is missing.
    """
    path = followed(Path(source))
    if is_run(path):
        path = _taken(path, take)
    name, run = str(path) if path.exists() else source, run_of(path)
    settings = _settings(path, run)
    revision = revision or settings.get("revision")
    if (path / FACTS).is_file():
        return ModelFiles(name, path / ADAPTER, path, run, settings, revision, _base(path, settings, base))
    if (path / PEFT_CONFIG).is_file() and not (path / MODEL_FILE).is_file():
        return ModelFiles(name, path, path, None, {}, revision, _base_of_adapters(path, base))
    weights = fetch(name, MODEL_FILE, revision, ACCEPTED)
    return ModelFiles(name, weights, weights.parent, run, settings, revision)


def is_run(folder: Path) -> bool:
    """Whether this is the folder of a GRPO or SFT run."""
    return (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir()


def run_of(path: Path) -> Path | None:
    """The run's folder that `path` is or is inside."""
    if not path.exists():
        return None
    if is_run(path):
        return path
    return next((folder for folder in list(path.resolve().parents)[:3] if is_run(folder)), None)


def merged_base(checkpoint: Path) -> str | None:
    """The merge that is the base of a GRPO checkpoint's adapters; None if the base is the run's --init."""
    facts = checkpoint / FACTS
    base = read_record(facts, "use another checkpoint", base=str)["base"]
    if base != "init" and not re.fullmatch(r"merges/merge_\d{4,}", base):
        raise UserError(f"{facts} is damaged (base is {clipped(base, 40)}): use another checkpoint")
    return None if base == "init" else str(checkpoint.parent.parent / base)


def _taken(run: Path, take: Take) -> Path:
    """The part of a run that `take` names. If it does not exist, UserError lists those that do."""
    places = {"final": run / "model", **{name: run / "checkpoints" / name for name in LINKS}}
    there = {name: place for name, place in places.items() if followed(place).is_dir()}
    if take in there:
        return followed(there[take])
    if not there:
        raise UserError(f"run {run} has neither a finished model nor a checkpoint yet: let it run to its first checkpoint")
    what = "finished model" if take == "final" else f"{take} checkpoint"
    raise UserError(f"run {run} has no {what} yet: give {' or '.join(map(str, there.values()))}")


def _settings(path: Path, run: Path | None) -> dict[str, Any]:
    """The settings of a model's run; empty without a run."""
    files = [path / "run_config.yaml", *([] if run is None else [run / "config.yaml"])]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return {}
    values = read_yaml(file, "restore the run's config")
    return values if isinstance(values, dict) else {}


def _base(checkpoint: Path, settings: Mapping[str, Any], base: str | None) -> ModelFiles:
    """The base model of a GRPO checkpoint's adapters."""
    base = base or merged_base(checkpoint) or settings.get("init")
    if base is None:
        raise UserError(
            f"{checkpoint} holds adapters, but the config.yaml of their run is missing: put the checkpoint back into its "
            "run, or name the adapters' base model with launch/export.py --base"
        )
    try:
        return locate(base, settings.get("revision"))
    except UserError as error:
        raise UserError(
            f"the base of {checkpoint}: {error}; if it has moved, give its new path with launch/export.py --base"
        ) from error


def _base_of_adapters(folder: Path, base: str | None) -> ModelFiles:
    """The base that PEFT adapters name: a whole model, as a path from their folder, any other path, or a hub id."""
    settings = read_record(folder / PEFT_CONFIG, "write the adapters again")
    source, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if base is not None:
        source = base
    elif not isinstance(source, str) or not source:
        raise UserError(adapters_only(folder))
    elif (folder / source).exists():
        source = str(folder / source)
    try:
        weights = fetch(source, MODEL_FILE, revision if isinstance(revision, str) else None)
    except UserError as error:
        raise UserError(
            f"the base of {folder}: {error}; if it has moved, correct base_model_name_or_path in {folder / PEFT_CONFIG}"
        ) from error
    return ModelFiles(source, weights, weights.parent, run_of(weights), {}, revision)

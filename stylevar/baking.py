"""LoRA adapters in checkpoints: add them to their base, wherever they come from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stylevar.errors import UserError
from stylevar.source import PEFT_CONFIG, PEFT_WEIGHTS
from stylevar.text_files import read_record
from stylevar.weight_files import State, read_file

LORA_SCALE = 2.0  # alpha / r of the released adapters
_PEFT = "base_model.model."
_SPECIAL_LORA = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "modules_to_save", "lora_bias")
"""Settings of PEFT under which an adapter is not W + s B A with one s."""
_LORA = re.compile(r"(?P<layer>.+)\.(?P<part>base_weight|base_layer\.weight|lora_[AB](\.\w+)?(\.weight)?|scaling)$")


def has_adapters(content: Any) -> bool:
    """Whether there are LoRA factors at any level."""
    if not isinstance(content, Mapping):
        return False
    return any((_LORA.match(str(key)) and ".lora_A" in str(key)) or has_adapters(value) for key, value in content.items())


def bake_lora(state: State, source: str, scale: float = LORA_SCALE) -> State:
    """Replace each `base_weight`, `lora_A`, `lora_B` of one layer by W + s B A. A state without them is returned unchanged.

    Raises UserError for adapters without their base.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    plain: State = {}
    for key, value in state.items():
        if match := _LORA.match(key):
            part = match["part"].split(".")[0]
            layers.setdefault(match["layer"], {})["base" if part.startswith("base") else part] = value
        else:
            plain[re.sub(r"\.(base_layer\.|base_)bias$", ".bias", key)] = value
    without_base = [name for name, parts in layers.items() if "base" not in parts]
    if without_base:
        raise UserError(
            f"{source} contains adapters without a base ({without_base[0]} and {len(without_base) - 1} more have no "
            f"base_weight): merge them into their base first, or give the merged checkpoint"
        )
    for name, parts in layers.items():
        weight, lora_a, lora_b = (parts[p].float() if p in parts else None for p in ("base", "lora_A", "lora_B"))
        assert weight is not None
        if lora_a is not None and lora_b is not None:
            if weight.shape != (lora_b.shape[0], lora_a.shape[1]) or lora_a.shape[0] != lora_b.shape[1]:
                shapes = [list(t.shape) for t in (weight, lora_a, lora_b)]
                raise UserError(f"{source}: base, lora_A and lora_B of {name} do not fit together, with shapes {shapes}")
            by = float(parts["scaling"]) if "scaling" in parts else scale
            weight = torch.addmm(weight, lora_b, lora_a, alpha=by)
        elif lora_a is not None or lora_b is not None:
            raise UserError(f"{source} contains only one of lora_A and lora_B of {name}: give a complete checkpoint")
        plain[f"{name}.weight"] = weight
    return plain


def with_adapters(state: State, folder: Path) -> State:
    """Apply the PEFT adapters in `folder`: W + s B A for each adapted layer, computed as in the policy."""
    settings = read_record(folder / PEFT_CONFIG, "use another checkpoint", lora_alpha=(int, float), r=int)
    if settings["r"] < 1:
        raise UserError(f"{folder / PEFT_CONFIG} is damaged (r is {settings['r']}): use another checkpoint")
    if special := [name for name in _SPECIAL_LORA if settings.get(name)]:
        raise UserError(f"{folder / PEFT_CONFIG} sets {special[0]}: only plain LoRA adapters, without it, can be used")
    scale = settings["lora_alpha"] / settings["r"]
    adapters: State = {k.removeprefix(_PEFT): v for k, v in read_file(folder / PEFT_WEIGHTS).items()}
    ranks = {len(value) for name, value in adapters.items() if name.endswith(".lora_A.weight") and value.ndim == 2}
    if ranks != {settings["r"]}:
        raise UserError(
            f"{folder / PEFT_CONFIG}: r is {settings['r']}, but {PEFT_WEIGHTS} beside it has another rank; copy both"
        )
    layers = {name.rpartition(".lora_")[0] for name in adapters}
    if unknown := sorted(layer for layer in layers if f"{layer}.weight" not in state):
        raise UserError(f"{folder} has adapters for {unknown[0]}, which its base lacks: their sizes do not fit")
    parted = {(f"{k[:-7]}.base_weight" if k[:-7] in layers and k.endswith(".weight") else k): v for k, v in state.items()}
    return bake_lora({**parted, **adapters}, str(folder), scale)

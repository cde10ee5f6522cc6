"""Checkpoints: read released weights and our own, refuse incomplete ones, and save.

Everything is read with `weights_only=True`. A state must match the model key by key: missing, unexpected or wrongly shaped
keys are an error that names the first few.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stylevar.baking import bake_lora, has_adapters, with_adapters
from stylevar.build import build_shapes, build_unfilled
from stylevar.config import ModelConfig, default_alphas
from stylevar.errors import BadSetting, UserError
from stylevar.hub import adapters_only, fetch
from stylevar.source import CONFIG_FILE, FACTS, MODEL_FILE, VAE_FILE, ModelFiles, locate
from stylevar.text_files import read_json, read_record
from stylevar.transformer import StyleVAR
from stylevar.vqvae import VQVAE
from stylevar.weight_files import State, few, find_state, read_file


def load_into(module: nn.Module, state: State, source: str) -> None:
    """Load `state` into `module`; all keys and shapes must match. Floats are cast to the module's dtype."""
    module.load_state_dict(fitted(module, state, source), strict=True)


def load_matching(module: nn.Module, state: State) -> list[str]:
    """Load the tensors that match in name and shape, to start a model of another shape; returns the names not loaded."""
    own = module.state_dict()
    fits = {name: state[name] for name, value in own.items() if name in state and state[name].shape == value.shape}
    module.load_state_dict(fits, strict=False)
    return [name for name in own if name not in fits]


def fitted(module: nn.Module, state: State, source: str) -> State:
    """`state` in the order and with the dtypes of `module`, which does not change.

    UserError if a key or a shape does not match, or a value is not finite.
    """
    own = module.state_dict()
    missing = [k for k in own if k not in state]
    unexpected = [k for k in state if k not in own]
    if missing or unexpected:
        parts = [
            f"{len(names)} {kind} ({few(names)})"
            for kind, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise UserError(
            f"{source} does not fit this model: {'; '.join(parts)}. "
            f"Give a complete checkpoint of this architecture (see its config.json)"
        )
    wrong = [f"{k} is {list(state[k].shape)}, not {list(v.shape)}" for k, v in own.items() if state[k].shape != v.shape]
    if wrong:
        raise UserError(f"{source} has another size: {few(wrong)}. Give a checkpoint of this width, depth and image size")
    check_finite(module, state, source)
    return {k: state[k].to(v.dtype) for k, v in own.items()}


def check_finite(module: nn.Module, state: State, source: str) -> None:
    """UserError if a weight or running statistic in `state` is NaN or infinite; `module` says which keys are checked."""
    weights = [name for name, _ in module.named_parameters()]
    statistics = [name for name, _ in module.named_buffers() if name.endswith(("running_mean", "running_var"))]
    for name in (*weights, *statistics):
        values = state[name]
        # Minimum and maximum are NaN if any value is; unlike isfinite, this needs no extra memory.
        if values.is_floating_point() and values.numel() and not all(end.isfinite() for end in values.aminmax()):
            raise UserError(f"{source} has values in {name} that are not finite: use an earlier checkpoint of its run")


def infer_config(state: State, vae_state: State, alphas: Sequence[float] | None = None) -> ModelConfig:
    """The architecture of a pair of states, inferred from names and shapes. States do not contain alphas."""
    per_level = Counter(state["lvl_1L"].flatten().tolist())
    patch_nums = tuple(round(per_level[s] ** 0.5) for s in sorted(per_level))
    return ModelConfig(
        **_vae_shape(vae_state),
        patch_nums=patch_nums,
        V=state["head.weight"].shape[0],
        Cvae=state["word_embed.weight"].shape[1],
        depth=1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks.")),
        shared_aln="shared_ada_lin.1.weight" in state,
        attn_l2_norm="blocks.0.attn.scale_mul_1H11" in state,
        style_enc_dim=state["feat_emb.weight"].shape[1],
        alphas=default_alphas(len(patch_nums)) if alphas is None else tuple(alphas),
    )


def _vae_shape(vae_state: State) -> dict[str, Any]:
    """The part of the config that can be inferred from the VQ-VAE's weights."""
    ch = vae_state["encoder.conv_in.weight"].shape[0]
    levels = 1 + max(int(k.split(".")[2]) for k in vae_state if k.startswith("encoder.down."))
    shared = sum(k.startswith("quantize.quant_resi.qresi_ls") and k.endswith(".weight") for k in vae_state)
    return {
        "ch": ch,
        "ch_mult": tuple(vae_state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] // ch for i in range(levels)),
        "share_quant_resi": 1 if "quantize.quant_resi.qresi.weight" in vae_state else shared,
    }


def load_tokenizer(source: str, patch_nums: tuple[int, ...]) -> VQVAE:
    """A frozen VQ-VAE without a transformer. Its weights do not contain the sides of its token maps, `patch_nums`."""
    state = read_vae_state(fetch(source, VAE_FILE))
    vocab, channels = state["quantize.embedding.weight"].shape
    try:
        shape = _vae_shape(state)
    except (KeyError, ValueError) as error:
        raise UserError(f"{source} is not a complete VQ-VAE (missing: {error}): copy it again") from error
    config = ModelConfig(patch_nums=patch_nums, V=vocab, Cvae=channels, alphas=default_alphas(len(patch_nums)), **shape)
    vae = VQVAE(config).requires_grad_(False).eval()
    load_into(vae, state, source)
    return vae


def read_model_state(path: Path) -> State:
    """The transformer's state in `path`, unwrapped, with LoRA baked in."""
    content = read_file(path)
    state = find_state(content, "pos_1LC", str(path))
    if state is None:
        if has_adapters(content):
            raise UserError(adapters_only(path))
        raise UserError(f"{path} contains no StyleVAR weights (no key pos_1LC at any level): give a model checkpoint")
    return bake_lora(state, str(path))


def read_vae_state(path: Path) -> State:
    """The VQ-VAE's state in `path`."""
    state = find_state(read_file(path), "quantize.embedding.weight", str(path))
    if state is None:
        raise UserError(f"{path} contains no VQ-VAE (no key quantize.embedding.weight): give the tokenizer's checkpoint")
    return state


@dataclass(frozen=True)
class ModelWeights:
    """A transformer's weights: `state` has the released names in their order, adapters baked in, all in fp32."""

    files: ModelFiles
    state: State
    arch: ModelConfig


def load_pair(
    init: str, vae: str | None = None, alphas: Sequence[float] | None = None, revision: str | None = None
) -> tuple[VQVAE, StyleVAR]:
    """Load a VQ-VAE and a StyleVAR on CPU, in eval mode.

    Args:
        init: the model, as the `source` of `locate`.
        vae: a file, a folder, or a hub id `owner/name[:file]`; by default the one beside the model or the one of its run.
        alphas: style weight per scale; by default from `config.json` beside the model, else the published ones.
        revision: hub revision of both.
    """
    files = locate(init, revision)
    weights = read_model(files, vae, alphas)
    vae_file = files.vae_file(vae)
    vae_state = read_vae_state(vae_file)
    fitted(build_shapes(weights.arch)[0], vae_state, str(vae_file))  # before the config takes any memory
    tokenizer, model = build_unfilled(weights.arch)
    load_into(tokenizer, vae_state, str(vae_file))
    model.load_state_dict(weights.state)
    return tokenizer, model


def read_model(files: ModelFiles, vae: str | None = None, alphas: Sequence[float] | None = None) -> ModelWeights:
    """Read a transformer; see `load_pair`. Without a config beside it, the architecture is inferred with its VQ-VAE.

    UserError if the weights are incomplete, or differ from those that the checkpoint was saved from.
    """
    state = _read_state(files)
    arch = _own_config(files) or _inferred(files, state, vae)
    if alphas is not None:
        arch = dataclasses.replace(arch, alphas=tuple(alphas))
    state = fitted(build_shapes(arch)[1], state, files.name)
    if files.base is not None and (files.folder / FACTS).is_file():  # adapters from elsewhere have no such record
        _check_fingerprint(files, state)
    return ModelWeights(files, state, arch)


def _read_state(files: ModelFiles) -> State:
    if files.base is not None:
        return with_adapters(_read_state(files.base), files.weights)
    state = read_model_state(files.weights)
    if is_vanilla_var(state):
        raise UserError(f"{files.name} is a vanilla VAR checkpoint, from which SFT starts, not a StyleVAR: train it first")
    return state


def _check_fingerprint(files: ModelFiles, state: State) -> None:
    """Refuse weights that differ from those that were saved, because their base has changed.

    Sums on a GPU differ in the last bits, so only checkpoints saved on a CPU can be checked reliably.
    """
    facts = read_record(files.folder / FACTS, "use another checkpoint", fingerprint=str)
    if facts.get("device") == "cpu" and fingerprint(state.values()) != facts["fingerprint"]:
        raise UserError(
            f"{files.name} does not give the weights it was saved from, because its base has changed: name the old base "
            "with launch/export.py --base"
        )


def fingerprint(weights: Iterable[Tensor]) -> str:
    """A bit-exact hash of a policy's effective weights, in the model's order and dtypes."""
    digest = hashlib.sha256()
    for tensor in weights:
        digest.update(tensor.detach().cpu().flatten().numpy().data)
    return digest.hexdigest()[:16]


def _inferred(files: ModelFiles, state: State, vae: str | None) -> ModelConfig:
    try:
        vae_file = files.vae_file(vae)
    except BadSetting as error:
        why = f"{files.name} has no {CONFIG_FILE} beside it: give its VQ-VAE, to infer the architecture"
        raise BadSetting("vae", None, why) from error
    try:
        return infer_config(state, read_vae_state(vae_file))
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"no architecture fits {files.name} with {vae_file} (missing: {error}): give a complete StyleVAR and its VQ-VAE"
        ) from error


def read_architecture(init: str, vae: str | None = None, revision: str | None = None) -> ModelConfig:
    """The architecture of `load_pair`'s model: from the config beside it, or else inferred from the weights."""
    files = locate(init, revision)
    return _own_config(files) or read_model(files, vae).arch


def config_beside(init: str, revision: str | None) -> ModelConfig | None:
    """The config saved with a model, or None."""
    return _own_config(locate(init, revision))


def _own_config(files: ModelFiles) -> ModelConfig | None:
    """The config of a model or of its base; None if there is none or it is another program's, as is common on the hub."""
    path = files.beside(CONFIG_FILE)
    if path is None:
        return None if files.base is None else _own_config(files.base)
    content = read_json(path, "restore it, or remove it to use defaults")
    ours = isinstance(content, dict) and {"patch_nums", "alphas"} <= set(content)
    return ModelConfig.load(path) if ours else None


def load_vae(source: str, config: ModelConfig) -> VQVAE:
    """Load a frozen VQ-VAE of `config`'s shape from a file, folder or hub id."""
    vae = VQVAE(config).requires_grad_(False).eval()
    path = fetch(source, VAE_FILE)
    load_into(vae, read_vae_state(path), str(path))
    return vae


def is_vanilla_var(state: State) -> bool:
    """Whether `state` is a class-conditional VAR, from which SFT starts."""
    return "blocks.0.attn.mat_qkv.weight" in state


def load_vanilla_var(model: StyleVAR, state: State, source: str, image_encoder: State) -> None:
    """Start SFT from a vanilla VAR: its attention initialises guide and target; `feat_emb` keeps its random initialisation.

    Args:
        state: the vanilla model's state, e.g. of `var_d20.pth`.
        image_encoder: a torchvision ResNet-18 state (ImageNet weights); both encoders start from it.
    """
    own = model.state_dict()
    mapped: State = {k: own[k] for k in own if k.startswith("feat_emb.") or ".zero_k_bias_" in k}
    children = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    for key, value in image_encoder.items():
        child, _, rest = key.partition(".")
        if child == "fc":
            continue
        at = children.index(child) if child in children else child
        for side in ("style", "content"):
            mapped[f"{side}_encoder.{at}.{rest}"] = value
    for key, value in state.items():
        if key.startswith("class_emb.") or key.endswith(".zero_k_bias"):
            continue
        if match := re.fullmatch(r"(blocks\.\d+\.attn\.)(mat_qkv|q_bias|v_bias)(\.weight)?", key):
            for side in ("guide", "target"):
                mapped[f"{match[1]}{match[2]}_{side}{match[3] or ''}"] = value
        else:
            mapped[key] = value
    load_into(model, mapped, source)


def compact(state: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> State:
    """The state on CPU as it is saved: float matrices are cast to `dtype` if that is smaller; the rest is unchanged."""

    def stored(v: Tensor) -> Tensor:
        v = v.detach().cpu().contiguous()
        smaller = v.is_floating_point() and v.ndim >= 2 and dtype.itemsize < v.dtype.itemsize
        return v.to(dtype) if smaller else v

    return {k: stored(v) for k, v in state.items()}


def save_model(state: Mapping[str, Tensor], config: ModelConfig, folder: Path, half: bool = False) -> None:
    """Write `model.safetensors` and `config.json` into an existing folder; `half` stores matrices in fp16."""
    save_file(compact(state, torch.half if half else torch.float32), str(folder / MODEL_FILE))
    config.save(folder / CONFIG_FILE)


def save_vae(vae: VQVAE, path: Path, half: bool = False) -> None:
    """Write the VQ-VAE's weights as safetensors; `half` stores matrices in fp16."""
    save_file(compact(vae.state_dict(), torch.half if half else torch.float32), str(path))


def save_torch(content: Any, path: Path) -> None:
    """`torch.save` that raises an OSError with the cause, not torch's RuntimeError, if the file cannot be written."""
    with path.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise

"""DreamSim (Fu et al. 2023) through its own package, only from weights on disk.

On its own, the package downloads missing weights, and fetches and runs DINO's code through torch.hub, which also changes the
hub folder of the whole process. Here the weights are checked first, and the package's own vision transformer replaces the
hub's (it is the same network), so nothing is fetched and no global state changes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from dreamsim import PerceptualModel
from dreamsim.config import dreamsim_args, dreamsim_weights
from dreamsim.feature_extraction.extractor import ViTExtractor
from dreamsim.feature_extraction.vision_transformer import vit_base
from peft import LoraConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from reward.base import Embedding, MissingWeights, PerceptualDistance
from stylevar.errors import UserError

DINO_HUB_FILE = "checkpoints/dino_vitbase16_pretrain.pth"
"""Where torch.hub puts DINO's backbone (the teacher's, for which the adapters were trained)."""
DINO_FULL_FILE = "dino_vitb16_pretrain.pth"
"""DINO's training state, part of DreamSim's archive."""
DINO_URL = "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth"


class DreamSimDistance(PerceptualDistance):
    """1 - cosine of DreamSim embeddings, with LoRA weights merged. Only component: "total"."""

    def __init__(self, dreamsim_type: str, cache: str | Path, device: str | torch.device = "cpu") -> None:
        """Read the weights of `dreamsim_type` from the folder `cache`. The device cannot be changed later.

        Raises UserError if the type is unknown, or weights are missing or unreadable, and names the files and their source.
        """
        super().__init__()
        cache = Path(cache).expanduser()
        check_weights(dreamsim_type, cache)
        self.name = f"dreamsim_{dreamsim_type}"
        self.size: int = dreamsim_args["img_size"]
        try:
            model = _LocalPerceptualModel(dreamsim_type, cache, torch.device(device))
            self.model = _merge_lora(model, cache / _lora_folder(dreamsim_type))
        except Exception as error:  # The unpickler can raise almost anything for a damaged file.
            raise UserError(
                f"DreamSim's {dreamsim_type} weights in {cache} cannot be used ({type(error).__name__}: {error}): "
                f"unpack {dreamsim_weights[dreamsim_type]} there again"
            ) from error
        self.to(device)
        self.requires_grad_(False)
        self.eval()

    def embed(self, images_01: Tensor) -> Embedding:
        """fp32 [N, 3, H, W] in [0, 1], any size -> fp32 [N, D], centred and of unit length."""
        # The package's preprocessing resizes PIL images with antialiased bicubic, which can overshoot the range.
        images_01 = tv.resize(images_01, [self.size, self.size], tv.InterpolationMode.BICUBIC, antialias=True)
        embedding = self.model.embed(images_01.clamp(0, 1))
        if self.model.is_patch:
            # [N, 1 + patches, D / 2]: the package compares the CLS token and the mean patch.
            embedding = torch.cat((embedding[:, 0], embedding[:, 1:].mean(dim=1)), dim=-1)
        return (embedding,)

    def compare(self, first: Embedding, second: Embedding) -> dict[str, Tensor]:
        """Cosine distances fp32 [N] in [0, 2]."""
        return {"total": 1 - torch.cosine_similarity(first[0], second[0], dim=-1)}


class _LocalPerceptualModel(PerceptualModel):
    """The package's model, built as its own constructor does, but with DINO's backbone from a file."""

    def __init__(self, dreamsim_type: str, cache: Path, device: torch.device) -> None:
        nn.Module.__init__(self)
        config = dreamsim_args["model_config"][dreamsim_type]
        self.model_list = config["model_type"].split(",")
        self.feat_type_list = config["feat_type"].split(",")
        self.stride_list = [int(stride) for stride in config["stride"].split(",")]
        self.is_patch = "cls_patch" in self.feat_type_list
        self.extract_feats_list = []
        self.extractor_list = nn.ModuleList()
        for model_type, feat_type, stride in zip(self.model_list, self.feat_type_list, self.stride_list, strict=True):
            local = model_type == "dino_vitb16"
            self.extractor_list.append(
                _LocalDino(cache, device) if local else ViTExtractor(model_type, stride, str(cache), device=device)
            )
            self.extract_feats_list.append(self._get_extract_fn(model_type, feat_type)[0])
        self.mlp = nn.Identity()
        self.normalize_embeds = True
        self.device = device


class _LocalDino(ViTExtractor):
    """The package's extractor around DINO ViT-B/16 without its projection head, which DreamSim does not use."""

    def __init__(self, cache: Path, device: torch.device) -> None:
        nn.Module.__init__(self)
        self.model_type = "dino_vitb16"
        self.device = device
        self.model = vit_base(patch_size=16)
        self.model.load_state_dict(_dino_backbone(cache))
        self.model.eval().to(device)
        self.p = self.model.patch_embed.patch_size
        self.stride = self.model.patch_embed.proj.stride
        self._feats: list[Tensor] = []
        self.hook_handlers: list = []


def _dino_backbone(cache: Path) -> dict[str, Tensor]:
    """DINO's backbone: the hub's file if it exists, else the backbone in DreamSim's own copy of DINO."""
    hub_file = cache / DINO_HUB_FILE
    if hub_file.is_file():
        return torch.load(hub_file, map_location="cpu", weights_only=True)
    full: Mapping = torch.load(cache / DINO_FULL_FILE, map_location="cpu", weights_only=True)
    if "cls_token" in full:
        return dict(full)
    role = "teacher" if "teacher" in full else "student"
    if role == "student":
        warnings.warn(
            f"{cache / DINO_FULL_FILE} holds only DINO's student, so distances differ slightly from the published "
            f"DreamSim: put {DINO_URL} at {hub_file} for the exact ones",
            stacklevel=2,
        )
    marker = "backbone."
    return {name.split(marker, 1)[1]: value for name, value in full[role].items() if marker in name}


def _merge_lora(model: PerceptualModel, folder: Path) -> PerceptualModel:
    """Load the adapters and merge them into the backbones. Raises ValueError if a layer has no adapter."""
    wrapped = get_peft_model(model, LoraConfig.from_pretrained(str(folder)))
    loaded: Any = set_peft_model_state_dict(wrapped, load_peft_weights(str(folder), device="cpu"))
    missing = [name for name in loaded.missing_keys if "lora_" in name]
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} LoRA weights, such as {missing[0]}")
    return wrapped.merge_and_unload()


def _lora_folder(dreamsim_type: str) -> str:
    if dreamsim_type == "ensemble" or dreamsim_type.endswith("_patch"):
        return f"{dreamsim_type}_lora"
    return f"{dreamsim_type}_single_lora"


def check_weights(dreamsim_type: str, cache: Path) -> None:
    """Raise MissingWeights, which says where to put which files, if a required file is missing."""
    known = {name: config for name, config in dreamsim_args["model_config"].items() if "dinov2" not in name}
    if dreamsim_type not in known:
        raise UserError(f"unknown dreamsim_type {dreamsim_type!r}: choose one of {', '.join(known)}")
    lora = _lora_folder(dreamsim_type)
    # Each entry lists alternatives; one of them is enough.
    needed = [[f"{lora}/adapter_config.json"], [f"{lora}/adapter_model.safetensors", f"{lora}/adapter_model.bin"]]
    for backbone in known[dreamsim_type]["model_type"].split(","):
        if backbone == "dino_vitb16":
            needed.append([DINO_FULL_FILE, DINO_HUB_FILE])
        elif backbone == "synclr_vitb16":
            needed.append(["synclr_vit_b_16.pth"])
        else:
            needed.append([f"{backbone}_pretrain.pth.tar"])
    missing = [names for names in needed if not any((cache / name).is_file() for name in names)]
    if missing:
        files = ", ".join(" or ".join(str(cache / name) for name in names) for names in missing)
        raise MissingWeights(
            f"DreamSim's {dreamsim_type} weights are missing: {files}. "
            f"Download {dreamsim_weights[dreamsim_type]} and unpack it into {cache}, or use the built-in lite reward"
        )

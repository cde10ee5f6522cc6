"""LoRA adapters through PEFT: attach, switch off for the reference policy, snapshot, bake into the base, save."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from stylevar.attention import BlendedAttention
from stylevar.checkpoint import fingerprint
from stylevar.errors import UserError
from stylevar.lowrank import base_weight, compute_dtype, effective_rows, factors, is_adapted, keep_effective
from stylevar.transformer import StyleVAR
from stylevar.weight_files import read_file

TARGETS = r"blocks\.\d+\.(attn\.(mat_qkv_guide|mat_qkv_target|proj)|ffn\.(fc1|fc2))"
AdapterState = dict[str, Tensor]


def adapted_layers(names: Iterable[str]) -> list[str]:
    """The layers that adapters change, among those of a state's keys `names`, in their order."""
    layers = [name.removesuffix(".weight") for name in names if name.endswith(".weight")]
    return [layer for layer in layers if re.fullmatch(TARGETS, layer)]


class Adapters:
    """The trainable part of a policy: rank-r adapters on every block of `model`; everything else is frozen.

    The base weights (the reference policy) do not change until `bake` adds the adapters to them. With `keep_in_place`
    the effective weights keep their memory addresses, as recorded kernels require.
    """

    def __init__(self, model: StyleVAR, rank: int = 256, alpha_over_rank: float = 2.0, seed: int = 0) -> None:
        if rank < 1:
            raise UserError(f"--lora-rank {rank}: must be at least 1")
        config = LoraConfig(
            r=rank, lora_alpha=round(alpha_over_rank * rank), target_modules=TARGETS, lora_dropout=0.0, bias="none"
        )
        self.model = model
        self.keep_in_place = False
        self._kept: dict[str, Tensor] = {}
        shapes_only = model.device.type == "meta"
        self.peft: PeftModel = get_peft_model(model, config, low_cpu_mem_usage=shapes_only)
        self.layers = {name: m for name, m in model.named_modules() if is_adapted(m)}
        self.reset(seed)

    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, in a fixed order."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def off(self) -> AbstractContextManager[None]:
        """Inside the context, the model is the reference policy."""
        return self.peft.disable_adapter()

    @contextmanager
    def effective_weights(self) -> Iterator[None]:
        """Inside the context, each layer keeps its effective weight W + s B A. Call `refresh` when the adapters change."""
        try:
            self.refresh()
            yield
        finally:
            for layer in self.layers.values():
                keep_effective(layer, None)

    def refresh(self) -> None:
        """Inside `effective_weights`: recompute the effective weights from the current adapters."""
        rows = {}
        for name, module in self.model.named_modules():
            if isinstance(module, BlendedAttention):
                rows.update({f"{name}.{child}": used for child, used in module.used_rows.items()})
        for name, layer in self.layers.items():
            weight = effective_rows(layer, rows.get(name, slice(None))).to(compute_dtype(layer))
            if self.keep_in_place:
                weight = self._kept.setdefault(name, weight).copy_(weight)
            keep_effective(layer, weight)

    @torch.no_grad()
    def reset(self, seed: int) -> None:
        """Reset to adapters without effect: A uniform as in PEFT, drawn from a stream of its own for `seed`; B zero."""
        if self.model.device.type == "meta":
            return
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers.values():
            lora_a, lora_b, _ = factors(layer)
            bound = 1 / math.sqrt(lora_a.shape[1])
            lora_a.copy_(torch.rand(lora_a.shape, generator=generator).mul_(2 * bound).sub_(bound))
            lora_b.zero_()

    def state(self) -> AdapterState:
        """A copy of the adapters, under PEFT's names."""
        return {k: v.detach().clone() for k, v in get_peft_model_state_dict(self.peft).items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor], source: str = "adapters") -> None:
        """Set the adapters. UserError unless `state` has exactly this model's names and shapes."""
        own = {k: v.shape for k, v in get_peft_model_state_dict(self.peft).items()}
        if {k: v.shape for k, v in state.items()} != own:
            raise UserError(f"{source} do not fit this model: give adapters for its depth, width and --lora-rank")
        set_peft_model_state_dict(self.peft, dict(state))

    @torch.no_grad()
    def bake(self) -> None:
        """Add the adapters to the base weights. Follow with `reset`."""
        for layer in self.layers.values():
            base_weight(layer).copy_(effective_rows(layer, slice(None)))

    def base_state(self) -> dict[str, Tensor]:
        """The base model's full state under the released names, without adapters. Tensors are not copied."""
        state = self.model.state_dict()
        return {k.replace(".base_layer.", "."): v for k, v in state.items() if ".lora_" not in k}

    def baked_state(self) -> dict[str, Tensor]:
        """The policy's full state under the released names, adapters added to the base. The model does not change."""
        state = self.base_state()
        for name, layer in self.layers.items():
            state[f"{name}.weight"] = effective_rows(layer, slice(None))
        return state

    def save(self, folder: Path) -> None:
        """Write the adapters in PEFT's format."""
        self.peft.save_pretrained(str(folder))

    def load_folder(self, folder: Path) -> None:
        """Load adapters written by `save`. UserError if they are missing, unreadable or of another shape."""
        self.load(read_file(folder / "adapter_model.safetensors"), source=f"adapters in {folder}")

    def fingerprint(self) -> str:
        """A bit-exact hash of all effective weights: workers with equal fingerprints hold the same policy."""
        return fingerprint(
            tensor if layer is None else effective_rows(layer, slice(None))
            for name, tensor in self.base_state().items()
            for layer in [self.layers.get(name.removesuffix(".weight"))]
        )

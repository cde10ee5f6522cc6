"""The config of a model: the numbers that determine its shapes, and the blend weights, which checkpoints lack."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from stylevar.bounds import Remedy, as_named, check_bounds
from stylevar.errors import BadSetting, UserError
from stylevar.sampling_config import SamplingConfig
from stylevar.text_files import read_json

PAPER_PATCH_NUMS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
PAPER_ALPHAS = (0.2, 0.3, 0.4, 0.4, 0.5, 0.5, 0.6, 0.6, 0.7, 0.8)
HEAD_DIM = 64
MAX_VOCAB = 2**15
Precision = Literal["fp32", "bf16"]
"""What the blocks multiply and attend in."""
Alpha = Annotated[float, Ge(0), Le(1)]
"""Weight of the style stream at one scale; the content stream gets the rest."""


def default_alphas(scales: int) -> tuple[float, ...]:
    """Style weight of each scale: the ten published values, or their curve sampled at `scales` equally spaced points."""
    if scales == len(PAPER_ALPHAS):
        return PAPER_ALPHAS
    import numpy as np  # late: processes that only parse flags do not need it

    at = np.linspace(0.0, len(PAPER_ALPHAS) - 1.0, scales)
    return tuple(round(float(a), 4) for a in np.interp(at, range(len(PAPER_ALPHAS)), PAPER_ALPHAS))


@dataclass(frozen=True)
class ModelConfig:
    """Shapes of the VQ-VAE and the transformer. Saved as `config.json` beside every checkpoint.

    S = number of scales, L = total tokens, C = width, H = heads, V = codebook size, D = `Cvae`.
    """

    patch_nums: tuple[int, ...] = PAPER_PATCH_NUMS
    """Side of the token map of each scale, coarse to fine."""
    V: Annotated[int, Ge(1), Le(MAX_VOCAB), Remedy("tokens travel as int16")] = 4096
    """Codebook size."""
    Cvae: Annotated[int, Ge(1)] = 32
    """Channels of the latent."""
    ch: int = 160
    """Base channels of the VQ-VAE; a multiple of 32."""
    ch_mult: tuple[Annotated[int, Ge(1)], ...] = (1, 1, 2, 2, 4)
    """Channel multiplier of each VQ-VAE level; every level after the first halves the resolution."""
    share_quant_resi: Annotated[int, Ge(0)] = 4
    """Residual convolutions of the quantizer: K shared by the scales, 1 for all, or 0 for one per scale."""
    depth: Annotated[int, Ge(1), Le(256)] = 20
    """Transformer blocks; also the number of heads. The width is 64 * depth."""
    shared_aln: bool = False
    """One adaLN projection shared by the blocks, with a learned offset per block."""
    attn_l2_norm: bool = True
    """L2-normalised queries and keys with a learned scale per head."""
    style_enc_dim: int = 512
    """Features of the content and style encoders: 512 is ResNet-18, 128 a ResNet-18 with a quarter of the channels."""
    alphas: tuple[Alpha, ...] = PAPER_ALPHAS
    """Weight of the style stream at each scale, in [0, 1]; the content stream gets the rest."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """The default sampling settings of this model."""

    def __post_init__(self) -> None:
        check_bounds(self, as_named)
        if not self.patch_nums or list(self.patch_nums) != sorted(set(self.patch_nums)) or self.patch_nums[0] != 1:
            raise UserError(f"patch_nums must start at 1 (one token opens the sequence) and increase, got {self.patch_nums}")
        if len(self.alphas) != self.scales:
            raise UserError(
                f"{len(self.alphas)} alphas for {self.scales} scales {self.patch_nums}: give one alpha per scale"
            )
        if self.ch < 32 or self.ch % 32:
            raise UserError(f"ch must be a positive multiple of 32 (GroupNorm has 32 groups), got {self.ch}")
        if self.style_enc_dim < 8 or self.style_enc_dim % 8:
            raise UserError(f"style_enc_dim must be a multiple of 8 (four widths d/8 ... d), got {self.style_enc_dim}")

    @property
    def scales(self) -> int:
        return len(self.patch_nums)

    @property
    def tokens(self) -> int:
        """L, the number of tokens of one image."""
        return sum(p * p for p in self.patch_nums)

    @property
    def width(self) -> int:
        """C, channels of the transformer."""
        return HEAD_DIM * self.depth

    @property
    def image_size(self) -> int:
        """Side of the square image in pixels."""
        return self.patch_nums[-1] * 2 ** (len(self.ch_mult) - 1)

    def scale_slices(self) -> list[slice]:
        """The slice of each scale in the L tokens."""
        slices, start = [], 0
        for p in self.patch_nums:
            slices.append(slice(start, start + p * p))
            start += p * p
        return slices

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `sampling` contains only settings that differ from the published ones."""
        values: dict[str, Any] = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        published, own = asdict(SamplingConfig()), values.pop("sampling")
        if changed := {k: v for k, v in own.items() if v != published[k]}:
            values["sampling"] = changed
        return values

    @staticmethod
    def from_dict(values: dict[str, Any]) -> ModelConfig:
        """Inverse of `to_dict`. Unknown keys raise UserError."""
        if not isinstance(values, Mapping):
            raise UserError("it holds no names with values")
        known = {f.name for f in fields(ModelConfig)}
        if unknown := sorted(set(values) - known):
            raise UserError(f"unknown keys in the model config: {unknown}; known keys are {sorted(known)}")
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        if "sampling" in arguments:
            try:
                arguments["sampling"] = SamplingConfig(**arguments["sampling"])
            except BadSetting as error:
                raise UserError(f"sampling: {error}") from error
        return ModelConfig(**arguments)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n")

    @staticmethod
    def load(path: Path) -> ModelConfig:
        """Read a config written by `save`. UserError if the file is not one."""
        try:
            return ModelConfig.from_dict(read_json(path, "restore it"))
        except (UserError, ValueError, TypeError) as error:
            raise UserError(f"{path} is not the config of a StyleVAR model: {error}") from error

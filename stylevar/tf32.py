"""Whether a GPU may round the inputs of fp32 operations to TF32."""

from __future__ import annotations

import torch


def allow_tf32(allowed: bool) -> None:
    """Set for the whole process whether a GPU may round the inputs of fp32 products and convolutions to TF32.

    By default torch allows it for convolutions, which would make tokens and pictures differ from those of a CPU.
    """
    torch.backends.cudnn.allow_tf32 = allowed
    torch.set_float32_matmul_precision("high" if allowed else "highest")

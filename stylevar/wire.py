"""The transfer format of adapters: plain arrays, which Ray's object store shares without copying."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from stylevar.adapters import AdapterState

WirePrecision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class AdapterWire:
    """`arrays` are fp32, or bfloat16 bits stored as int16."""

    arrays: Mapping[str, np.ndarray]

    @staticmethod
    def pack(state: Mapping[str, Tensor], precision: WirePrecision = "fp32") -> AdapterWire:
        """A copy of `state` in the given precision."""
        if precision == "fp32":
            return AdapterWire({name: value.detach().cpu().float().numpy().copy() for name, value in state.items()})
        rounded = {name: value.detach().to(torch.bfloat16).cpu().view(torch.int16) for name, value in state.items()}
        return AdapterWire({name: value.numpy().copy() for name, value in rounded.items()})

    def unpack(self) -> AdapterState:
        """The state as fp32 tensors; bfloat16 is widened exactly."""
        state = {}
        for name, array in self.arrays.items():
            tensor = torch.from_numpy(array.copy())  # the store's memory is read-only
            state[name] = tensor.view(torch.bfloat16).float() if array.dtype == np.int16 else tensor
        return state

    @property
    def nbytes(self) -> int:
        """Bytes to transfer."""
        return sum(array.nbytes for array in self.arrays.values())

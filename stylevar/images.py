"""Conversions between the three image conventions: uint8 [0, 255], float [0, 1] (`_01`) and float [-1, 1] (`_pm1`)."""

from __future__ import annotations

import torch
from torch import Tensor


def u8_to_pm1(image_u8: Tensor) -> Tensor:
    """uint8 [0, 255] -> fp32 [-1, 1], any shape."""
    return image_u8.to(torch.float32).div(127.5).sub(1.0)


def u8_to_01(image_u8: Tensor) -> Tensor:
    """uint8 [0, 255] -> fp32 [0, 1], any shape."""
    return image_u8.to(torch.float32).div(255.0)


def pm1_to_u8(image_pm1: Tensor) -> Tensor:
    """float [-1, 1] (clamped) -> uint8 [0, 255], rounded to nearest, any shape."""
    return image_pm1.to(torch.float32).add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Move `tensor` to `device`; to a GPU through pinned memory, so that the copy is asynchronous."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)

"""How pictures are made square for the model, and results brought back to the picture's shape."""

from __future__ import annotations

from typing import Literal

Fit = Literal["crop", "pad", "stretch"]
Restore = Literal["aspect", "size", "square"]

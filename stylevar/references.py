"""What a reward can compare generated images with."""

from __future__ import annotations

from typing import Literal

Reference = Literal["target", "content", "style"]
"""The images of a condition that a reward can compare with."""

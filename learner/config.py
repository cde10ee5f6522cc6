"""Types of settings that several learners share."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Lt

Decay = Annotated[float, Ge(0), Lt(1)]
"""Decay per step of a moving average."""
OptimizerDevice = Literal["auto", "cpu", "device"]

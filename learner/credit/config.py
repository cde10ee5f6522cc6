"""The settings of credit assignment."""

from __future__ import annotations

from typing import Literal

AdvantageNorm = Literal["std", "none", "leave-one-out"]
CreditKind = Literal["trajectory", "vmr", "prefix", "local", "gradient"]

"""Every method of credit assignment by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from learner.credit.base import CreditMethod
from learner.credit.gradient import GradientCredit
from learner.credit.local import LocalCredit
from learner.credit.prefix import PrefixCredit
from learner.credit.trajectory import TrajectoryCredit
from learner.credit.vmr import VmrCredit

CreditKind = Literal["trajectory", "vmr", "prefix", "local", "gradient"]

METHODS: Mapping[CreditKind, type[CreditMethod]] = {
    "trajectory": TrajectoryCredit,
    "vmr": VmrCredit,
    "prefix": PrefixCredit,
    "local": LocalCredit,
    "gradient": GradientCredit,
}

"""Every method of credit assignment by its name."""

from __future__ import annotations

from collections.abc import Mapping

from learner.credit.base import CreditMethod
from learner.credit.config import CreditKind
from learner.credit.gradient import GradientCredit
from learner.credit.local import LocalCredit
from learner.credit.prefix import PrefixCredit
from learner.credit.trajectory import TrajectoryCredit
from learner.credit.vmr import VmrCredit

METHODS: Mapping[CreditKind, type[CreditMethod]] = {
    "trajectory": TrajectoryCredit,
    "vmr": VmrCredit,
    "prefix": PrefixCredit,
    "local": LocalCredit,
    "gradient": GradientCredit,
}

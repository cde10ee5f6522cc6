"""From a setting to a method of credit assignment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from learner.credit.base import CreditMethod
from learner.credit.gradient import GradientCredit
from learner.credit.local import LocalCredit
from learner.credit.prefix import PrefixCredit
from learner.credit.trajectory import AdvantageNorm, TrajectoryCredit
from stylevar.vqvae import VQVAE

CreditKind = Literal["trajectory", "prefix", "local", "gradient"]

METHODS: Mapping[CreditKind, type[CreditMethod]] = {
    "trajectory": TrajectoryCredit,
    "prefix": PrefixCredit,
    "local": LocalCredit,
    "gradient": GradientCredit,
}


def build_credit(kind: CreditKind, vae: VQVAE, norm: AdvantageNorm, curvature: bool, at_once: int) -> CreditMethod:
    """The method named `kind`. `curvature` and `at_once` are of `GradientCredit`."""
    if kind == "gradient":
        return GradientCredit(vae, norm, curvature, at_once)
    if kind == "prefix":
        return PrefixCredit(vae, norm)
    if kind == "local":
        return LocalCredit(vae.quantize.patch_nums, norm)
    return TrajectoryCredit(norm)

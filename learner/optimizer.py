"""AdamW for the adapters, with its moments beside them or in host memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from learner.config import OptimizerDevice


class HostAdamW(torch.optim.AdamW):
    """AdamW with its moments and a copy of the parameters in host memory; the CPU does the arithmetic.

    A step copies gradients and parameters to the host and the new parameters back, so code that sets the parameters (a
    rollback, a checkpoint) need not notify the optimizer. Its state is interchangeable with that of `torch.optim.AdamW`.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], **settings: Any) -> None:
        """`parameters` must be fp32, on any device; `settings` are AdamW's."""
        self.on_device = list(parameters)
        self.on_host = [nn.Parameter(_staging(p)) for p in self.on_device]
        for own in self.on_host:
            own.grad = _staging(own, pinned=own.is_pinned())
        super().__init__(self.on_host, fused=not any(p.is_meta for p in self.on_device), **settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Like AdamW's step; a parameter without a gradient does not change."""
        if closure is not None:
            raise ValueError("HostAdamW takes no closure: compute the gradients before calling step")
        gradients = [own.grad for own in self.on_host]
        for own, parameter, gradient in zip(self.on_host, self.on_device, gradients, strict=True):
            own.copy_(parameter, non_blocking=True)
            if parameter.grad is None:
                own.grad = None
            elif gradient is not None:
                gradient.copy_(parameter.grad, non_blocking=True)
        if any(parameter.is_cuda for parameter in self.on_device):
            torch.cuda.synchronize()
        super().step()
        for own, parameter, gradient in zip(self.on_host, self.on_device, gradients, strict=True):
            parameter.copy_(own)
            own.grad = gradient

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients on the device; the next step overwrites the host's copies."""
        for parameter in self.on_device:
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()


def _staging(like: Tensor, pinned: bool | None = None) -> Tensor:
    """An uninitialised fp32 tensor on the CPU; page-locked for a GPU, which makes copies much faster."""
    pinned = like.is_cuda if pinned is None else pinned
    return torch.empty(like.shape, dtype=torch.float32, device="meta" if like.is_meta else "cpu", pin_memory=pinned)


def build_optimizer(parameters: Sequence[nn.Parameter], where: OptimizerDevice, **settings: Any) -> torch.optim.AdamW:
    """AdamW with its state on the parameters' device, unless `where` is "cpu"."""
    if where == "cpu":
        return with_moments(HostAdamW(parameters, **settings))
    # One kernel instead of a dozen passes over the parameters; it does not support the meta device.
    fused = not any(parameter.is_meta for parameter in parameters)
    return with_moments(torch.optim.AdamW(parameters, fused=fused, **settings))


def with_moments(optimizer: torch.optim.AdamW) -> torch.optim.AdamW:
    """Allocate the optimizer's moments now; torch would do so in the first step, between the activations of an update."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            step = torch.zeros((), device=parameter.device if group["fused"] else "cpu")
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": step, **moments}
    return optimizer


def load_moments(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load moments and step counts of a saved `optimizer.state_dict()`; learning rate, decay etc. stay the optimizer's own.

    torch restores those as well, so a run resumed with another learning rate would continue with the old one.
    """
    own = optimizer.state_dict()["param_groups"]
    saved = state["param_groups"]
    groups = [{**mine, "params": theirs["params"]} for mine, theirs in zip(own, saved, strict=True)]
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})

"""Fused chains of operations compute what the plain ones compute, values and gradients."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from threading import Thread
from typing import Any

import pytest
import small_model
import torch
import torch.nn.functional as F
from torch import Tensor

from stylevar import fusing
from stylevar.conditions import encode_conditions, guide_queries, teacher_forced
from stylevar.fusing import Fusible, fuse
from stylevar.norm import modulate, residual, unit
from stylevar.policy import Policy, PolicySource
from stylevar.vqvae import GroupNorm

CPU = torch.device("cpu")


@pytest.fixture
def fused() -> Iterator[None]:
    if not fuse(True, CPU):
        pytest.skip("torch cannot compile here")
    yield
    fuse(False, CPU)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def missing(*_: Any, **__: Any) -> Callable[..., Tensor]:
        raise RuntimeError("no working C++ compiler\nand much more")

    fusing._compiles.cache_clear()
    monkeypatch.setattr(torch, "compile", missing)
    yield
    fusing._compiles.cache_clear()
    fuse(False, CPU)


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    leaves = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs]
    result = function(*leaves)
    weights = torch.linspace(-1, 1, result.numel()).view(result.shape)
    return [result, *torch.autograd.grad((result.float() * weights).sum(), leaves)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


CHAINS: dict[str, tuple[Callable[..., Tensor], Callable[[int], tuple[Tensor, ...]]]] = {
    "modulate": (
        modulate,
        lambda t: (3 * random(2, 3, t, 16) + 1, random(2, 1, 1, 16, seed=1), random(2, 1, 1, 16, seed=2)),
    ),
    "unit": (unit, lambda t: (random(2, 3, t, 8, 4).transpose(2, 3),)),
    "residual": (residual, lambda t: (random(2, 3, t, 16), random(2, 1, 1, 16, seed=1), random(2, 3, t, 16, seed=2))),
}


@pytest.mark.parametrize("name", CHAINS)
def test_chains_of_the_transformer(name: str, fused: None) -> None:
    chain, inputs = CHAINS[name]
    for tokens in (4, 9):  # as scales grow
        given = inputs(tokens)
        found = with_gradients(chain, *given)
        fuse(False, CPU)
        expected = with_gradients(chain, *given)
        fuse(True, CPU)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_result_has_the_dtype_that_products_take(fused: None) -> None:
    given = CHAINS["modulate"][1](5)
    rounded = modulate(*given, torch.bfloat16)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), modulate(*given), rtol=2**-7, atol=1e-6)
    assert unit(random(2, 8).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        (torch.contiguous_format, torch.float32),
        (torch.channels_last, torch.float32),
        (torch.channels_last, torch.bfloat16),
    ],
)
def test_norm_and_silu_of_the_decoder(layout: torch.memory_format, dtype: torch.dtype, fused: None) -> None:
    norm = GroupNorm(32, 64, eps=1e-6)
    with torch.no_grad():
        norm.weight.copy_(random(64, seed=1))
        norm.bias.copy_(random(64, seed=2))
    x = (random(2, 64, 6, 6, seed=3) * torch.linspace(0.1, 3, 64).view(1, 64, 1, 1) + 5).to(dtype).to(memory_format=layout)
    found = with_gradients(norm.then_silu, x)
    fuse(False, CPU)
    plain = with_gradients(norm.then_silu, x)
    exact = with_gradients(lambda x: F.silu(copy.deepcopy(norm).double()(x.double())), x)
    for ours, theirs, true in zip(found, plain, exact, strict=True):
        assert (ours.dtype, ours.stride()) == (theirs.dtype, theirs.stride())
        # Not compared with each other: with channels last, torch's own norm is a hundred times less exact on a CPU.
        close = {"rtol": 1e-4, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 2**-6, "atol": 0.05}
        torch.testing.assert_close(ours.double(), true.double(), **close)


def test_the_gradients_of_adapters(fused: None) -> None:
    model = small_model.build()
    adapters = small_model.adapt(model)
    style, content, tokens = small_model.inputs(model)
    with torch.no_grad():
        state = encode_conditions(model, style, content)

    def gradients() -> list[Tensor]:
        logits = teacher_forced(model, state, guide_queries(model, state), tokens.unsqueeze(1))
        return [logits.detach(), *torch.autograd.grad(logits.square().mean(), adapters.parameters())]

    found = gradients()
    threaded: list[Tensor] = []  # a GPU's backward pass has a thread of its own
    thread = Thread(target=lambda: threaded.extend(gradients()))
    thread.start()
    thread.join()
    fuse(False, CPU)
    for ours, other, plain in zip(found, threaded, gradients(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-5 * float(plain.abs().max()))
        torch.testing.assert_close(other, ours, rtol=1e-4, atol=1e-6 * float(plain.abs().max()))


def test_a_policy_fuses_if_its_source_says_so(fused: None) -> None:
    fuse(False, CPU)
    for wanted in (True, False):
        Policy(PolicySource("model", "vae", lora_rank=2, seed=0, compile=wanted), CPU, small_model.build())
        assert fusing.fusing() is wanted


def test_plans_on_the_meta_device_compile_nothing(fused: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", None)
    new = Fusible(lambda x: x + 1)
    assert new(torch.empty(1, 7, device="meta")).shape == (1, 7)
    with pytest.raises(TypeError):
        new(torch.empty(1, 7))


def test_without_a_compiler_it_says_so_and_goes_on(no_compiler: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert not fuse(True, CPU)
    [said] = caplog.messages
    assert said == "--compile: torch.compile fails on cpu (no working C++ compiler): running without it"
    given = CHAINS["residual"][1](5)
    assert torch.equal(residual(*given), given[0] + given[1] * given[2])

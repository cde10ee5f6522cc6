"""Both libraries give the same products and gradients, and oneDNN is taken only where it is the faster one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stylevar import products
from stylevar.products import linear, matmul, onednn_is_faster


@pytest.fixture(params=[True, False], ids=["oneDNN", "MKL"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("torch has no oneDNN here")
    monkeypatch.setattr(products, "onednn_is_faster", lambda: request.param)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(7, 12), (2, 3, 5, 12), (1, 12), (0, 12)])
@pytest.mark.parametrize("biased", [True, False])
def test_linear_and_its_gradients(shape: tuple[int, ...], biased: bool, library: None) -> None:
    x, weight, bias = random(*shape), random(9, 12, seed=1), random(9, seed=2) if biased else None

    def results(function: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        given = [None if t is None else t.to(dtype).requires_grad_() for t in (x, weight, bias)]
        y = function(*given)
        with torch.no_grad():
            torch.testing.assert_close(function(*given), y, rtol=0, atol=0)
        pull = random(*y.shape, seed=3).to(dtype)
        return [y, *torch.autograd.grad(y, [t for t in given if t is not None], pull)]

    for ours, exact in zip(results(linear, torch.float32), results(F.linear, torch.float64), strict=True):
        assert ours.shape == exact.shape
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)


def test_rows_of_a_weight_and_inputs_without_gradients(library: None) -> None:
    x, weight = random(4, 6), random(10, 6, seed=1).requires_grad_()
    y = linear(x, weight[3:7])
    (gradient,) = torch.autograd.grad(y.sum(), weight)
    expected = torch.zeros(10, 6)
    expected[3:7] = x.sum(0)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("turned", [False, True])
def test_products_of_turned_matrices(turned: bool, library: None) -> None:
    a, b = random(5, 8), random(8, 3, seed=1)
    if turned:
        a, b = a.t().contiguous().t(), b.t().contiguous().t()
    torch.testing.assert_close(matmul(a, b), (a.double() @ b.double()).float())
    torch.testing.assert_close(matmul(random(2, 4, 8), b), random(2, 4, 8) @ b)
    assert matmul(a.double(), b.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("facts", "capability", "faster"),
    [
        ("vendor_id : AuthenticAMD", "AVX512", True),
        ("vendor_id : AuthenticAMD", "AVX2", False),
        ("vendor_id : GenuineIntel", "AVX512", False),
        (None, "AVX512", False),
    ],
)
def test_where_onednn_is_faster(
    facts: str | None, capability: str, faster: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if facts is not None:
        (tmp_path / "cpuinfo").write_text(facts)
    monkeypatch.setattr(products, "CPU_FACTS", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert onednn_is_faster.__wrapped__() is faster

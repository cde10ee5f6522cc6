"""Log-probs in chunks: values and gradients are those of softmax over all logits at once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stylevar import logprobs
from stylevar.logprobs import CodeValues, token_logprobs, token_terms
from stylevar.sampling import pack_support

SHAPE, WIDTH, VOCAB = (2, 3, 7), 8, 30


@pytest.fixture
def head() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, VOCAB).requires_grad_(False)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_chunks_change_neither_values_nor_gradients(head, monkeypatch, temperature, truncated, rows):
    monkeypatch.setattr(logprobs, "CHUNK", rows * VOCAB)
    x = torch.randn(*SHAPE, WIDTH, requires_grad=True)
    tokens = torch.randint(VOCAB, SHAPE)
    upstream = torch.randn(SHAPE)
    keep = torch.rand(*SHAPE, VOCAB) < 0.5
    keep.scatter_(-1, tokens.unsqueeze(-1), True)
    logits = head(x) / temperature
    every = (logits.masked_fill(~keep, -1e9) if truncated else logits).log_softmax(-1)
    expected = every.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    (gradient,) = torch.autograd.grad(expected, x, upstream)
    logp, entropy = token_logprobs(head, x, tokens.to(torch.int16), temperature, pack_support(keep) if truncated else None)
    torch.testing.assert_close(logp, expected)
    torch.testing.assert_close(entropy, -(every.exp() * every).sum(-1))
    torch.testing.assert_close(torch.autograd.grad(logp, x, upstream)[0], gradient)
    assert not entropy.requires_grad


def test_nothing_is_kept_for_a_backward_pass_that_does_not_come(head):
    kept = []
    x = torch.randn(*SHAPE, WIDTH)
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        logp, _ = token_logprobs(head, x, torch.randint(VOCAB, SHAPE))
    assert not logp.requires_grad
    assert not kept


def test_a_head_that_is_trained_is_refused():
    with pytest.raises(ValueError, match="freeze"):
        token_logprobs(nn.Linear(WIDTH, VOCAB), torch.randn(*SHAPE, WIDTH), torch.zeros(SHAPE, dtype=torch.int64))


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("rows", [5, 1000])
def test_gains_and_the_full_kl_are_sums_over_all_codes(head, monkeypatch, truncated, rows):
    monkeypatch.setattr(logprobs, "CHUNK", rows * VOCAB)
    temperature, depth = 0.7, 4
    x, reference = torch.randn(*SHAPE, WIDTH, requires_grad=True), torch.randn(*SHAPE, WIDTH)
    tokens = torch.randint(VOCAB, SHAPE)
    values = CodeValues(torch.randn(*SHAPE, depth), torch.randn(VOCAB, depth), torch.rand(SHAPE[-1]))
    keep = torch.rand(*SHAPE, VOCAB) < 0.5
    keep.scatter_(-1, tokens.unsqueeze(-1), True)

    def log_probs(features):
        logits = head(features) / temperature
        return (logits.masked_fill(~keep, -1e9) if truncated else logits).log_softmax(-1)

    support = pack_support(keep) if truncated else None
    found = token_terms(head, x, tokens, temperature, support, values, reference)
    probs = log_probs(x).exp()
    moved = values.codebook - values.codebook[tokens].unsqueeze(-2)  # [..., V, D]
    worth = values.slopes.unsqueeze(-2).mul(moved).sum(-1) - values.curvature[:, None] / 2 * moved.square().sum(-1)
    advantages = (worth - (probs * worth).sum(-1, keepdim=True)).detach()
    gain, kl = (probs * advantages).sum(-1), (probs * (log_probs(x) - log_probs(reference))).sum(-1)
    torch.testing.assert_close(found.gain, gain, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.spread, (probs * advantages.square()).sum(-1).sqrt(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.kl, kl, atol=1e-5, rtol=1e-4)
    for name, expected in (("gain", gain), ("kl", kl)):
        upstream = torch.randn(SHAPE)
        (wanted,) = torch.autograd.grad(expected, x, upstream, retain_graph=True)
        (actual,) = torch.autograd.grad(getattr(found, name), x, upstream, retain_graph=True)
        torch.testing.assert_close(actual, wanted, atol=1e-5, rtol=1e-4)

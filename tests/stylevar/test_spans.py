"""Block-causal attention by spans: the masked square, without the masked part."""

from __future__ import annotations

import pytest
import torch

from stylevar import transformer
from stylevar.attention import BlendedAttention, Span
from stylevar.build import build_from_config
from stylevar.config import HEAD_DIM, ModelConfig
from stylevar.transformer import StyleVAR


def model(patch_nums: tuple[int, ...]) -> StyleVAR:
    fields = {"depth": 2, "Cvae": 8, "V": 20, "ch": 32, "ch_mult": (1, 1), "style_enc_dim": 32}
    alphas = tuple(0.1 + 0.8 * s / len(patch_nums) for s in range(len(patch_nums)))
    return build_from_config(ModelConfig(patch_nums=patch_nums, alphas=alphas, **fields))[1]


@pytest.mark.parametrize("least", [1, 8, 64, 10_000])
def test_spans_attend_as_the_dense_mask_does(monkeypatch, least):
    monkeypatch.setattr(transformer, "MIN_SPAN", least)
    net = model((1, 2, 3, 4, 6))
    length, attention = net.arch.tokens, net.blocks[0].attn
    torch.manual_seed(1)
    q = torch.randn(2, 2, 2 * length, HEAD_DIM, requires_grad=True)
    k, v = (torch.randn(2, 3, 2, length, HEAD_DIM, requires_grad=True) for _ in range(2))
    scales = net.arch.scale_slices()
    bias = torch.cat([net.causal_bias[at].repeat(2, 1) for at in scales])
    dense = [Span(tuple(at.stop - at.start for at in scales), length, bias)]
    results = [attend(attention, q, k, v, net.alphas(), spans) for spans in (dense, net.causal_spans())]
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def attend(attention: BlendedAttention, q, k, v, alphas, spans) -> list[torch.Tensor]:
    out = attention(q, k, v, alphas, spans)
    return [out, *torch.autograd.grad(out.sin().sum(), (q, k, v))]


def test_the_published_scales_skip_over_a_third_of_the_square():
    spans = model(ModelConfig().patch_nums).causal_spans()
    assert [(sum(span.tokens), span.keys) for span in spans] == [(91, 91), (64, 155), (100, 255), (169, 424), (256, 680)]
    assert [span.bias is not None for span in spans] == [True, False, False, False, False]
    area = sum(sum(span.tokens) * span.keys for span in spans)
    assert area / 680**2 < 0.66


def test_each_token_sees_its_own_scale_and_the_earlier_ones_only():
    net = model((1, 2, 8))
    ends = [1, 5, 69]
    k = torch.zeros(1, 1, 2, 69, HEAD_DIM)
    v = torch.arange(69.0).view(1, 1, 1, 69, 1).expand_as(k).contiguous()
    identity = net.blocks[0].attn
    with torch.no_grad():
        identity.proj.weight.copy_(torch.eye(2 * HEAD_DIM))
        identity.proj.bias.zero_()
    out = identity(torch.zeros(1, 2, 2 * 69, HEAD_DIM), k, v, net.alphas(), net.causal_spans())
    means = torch.cat([torch.full((end - start,), (end - 1) / 2) for start, end in zip([0, *ends], ends, strict=False)])
    torch.testing.assert_close(out[0, 0, :, 0], means)

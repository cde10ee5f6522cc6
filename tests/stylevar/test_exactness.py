"""What is sampled is what is learned from: cached generation against one teacher-forced pass, and nothing wasted."""

from __future__ import annotations

import dataclasses
import math

import pytest
import small_model
import torch
import torch.nn.functional as F

from stylevar import attention
from stylevar.attention import BlendedAttention
from stylevar.conditions import encode_conditions, guide_queries, teacher_forced
from stylevar.generate import generate
from stylevar.lowrank import base_weight
from stylevar.sampling import TrajectoryStreams, trajectory_seeds
from stylevar.sampling_config import SamplingConfig
from stylevar.transformer import StyleVAR

VARIANTS = {
    "plain": {},
    "ten scales": small_model.PAPER_SCALES,
    "one scale": {"patch_nums": (1,)},
    "uneven scales": {"patch_nums": (1, 3, 4, 7)},
    "shared adaLN": {"shared_aln": True},
    "no l2 norm": {"attn_l2_norm": False},
    "three blocks": {"depth": 3},
}
GROUP = 3
UNCUT = SamplingConfig(top_k=0, top_p=0.0)


def sampled(model: StyleVAR, sampling: SamplingConfig = UNCUT, keys: tuple[str, ...] = ("a", "b")):
    style, content, _ = small_model.inputs(model, len(keys))
    state = encode_conditions(model, style, content)
    queries = guide_queries(model, state)
    stream = TrajectoryStreams(trajectory_seeds(0, 0, keys, GROUP), model.arch.tokens, model.device)
    return state, queries, generate(model, state, queries, GROUP, stream, sampling, keep_logits=True)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("adapted", [False, True])
@torch.no_grad()
def test_cached_log_probs_are_the_teacher_forced_ones(name, adapted):
    model = small_model.build(**VARIANTS[name])
    if adapted:
        small_model.adapt(model)
    state, queries, result = sampled(model, SamplingConfig(top_k=20, top_p=0.9))
    again = teacher_forced(model, state, queries, result.tokens)
    torch.testing.assert_close(result.logits.log_softmax(-1), again.log_softmax(-1), atol=1e-5, rtol=0)
    chosen = again.log_softmax(-1).gather(-1, result.tokens.long().unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(result.logp, chosen, atol=1e-5, rtol=0)
    # The latent that is decoded is that of the tokens.
    idx_Bl = [result.tokens[..., s].flatten(0, 1).long() for s in model.arch.scale_slices()]
    torch.testing.assert_close(result.f_hat, model.vae.quantize.idxBl_to_fhat(idx_Bl), atol=1e-4, rtol=0)


def doubled_cache_logits(model: StyleVAR, state, queries, tokens: torch.Tensor) -> torch.Tensor:
    """The released cache by brute force, one trajectory [L] at a time: each block appends a scale's keys and values twice,
    before its style and before its content attention, so that earlier scales count twice and the present one once or twice.
    """
    layers = [block.attn for block in model.blocks]
    kept: list[tuple[list, list]] = [([], []) for _ in layers]
    positions, alphas = model.level_positions(), model.alphas()
    slices, logits = model.arch.scale_slices(), []
    for s, at in enumerate(slices):
        if s == 0:
            x = state.start.unsqueeze(1)
        else:
            idx_Bl = [tokens[before][None].long() for before in slices[:s]]
            f_hat = model.vae.quantize.cumulative(idx_Bl)[-1]
            x = (model.word_embed(model.vae.quantize.at_scale(f_hat, s)) + positions[:, at]).unsqueeze(1)
        for i, block in enumerate(model.blocks):
            gamma1, gamma2, scale1, scale2, shift1, shift2 = state.adaln[i]
            k, v = layers[i].keys_values(x, scale1, shift1)
            mixed = []
            for stream in range(2):
                kept[i][0].append(k)
                kept[i][1].append(v)
                keys, values = (torch.cat(rows, dim=3)[:, 0] for rows in kept[i])
                q = queries[i][:, :, 2 * at.start : 2 * at.stop].chunk(2, dim=2)[stream]
                mixed.append(F.scaled_dot_product_attention(q, keys, values, scale=1.0))
            blended = alphas[at] * mixed[0] + (1 - alphas[at]) * mixed[1]
            blended = layers[i].proj(blended.transpose(1, 2).flatten(2)).unsqueeze(1)
            x = x + gamma1 * blended
            x = x + gamma2 * block.ffn(x, scale2, shift2)
        logits.append(model.head_logits(x, state.head_adaln))
    return torch.cat(logits, dim=2)[0, 0]


@pytest.mark.parametrize("name", ["plain", "no l2 norm", "three blocks"])
@torch.no_grad()
def test_paper_cache_is_the_doubled_one(name):
    model = small_model.build(**VARIANTS[name])
    state, queries, result = sampled(model, dataclasses.replace(UNCUT, kv_cache="paper"), keys=("a",))
    for g in range(GROUP):
        expected = doubled_cache_logits(model, state, queries, result.tokens[0, g])
        torch.testing.assert_close(result.logits[0, g], expected, atol=2e-5, rtol=0)
    # And it is another policy than the one that teacher forcing describes.
    exact = teacher_forced(model, state, queries, result.tokens)
    assert (result.logits - exact).abs().max() > 1e-3


@torch.no_grad()
def test_a_trajectory_does_not_depend_on_its_batch():
    model = small_model.build()
    state, _, together = sampled(model)
    one = state.select(slice(1, 2))
    stream = TrajectoryStreams(trajectory_seeds(0, 0, ("b",), GROUP)[:, 1:], model.arch.tokens, model.device)
    alone = generate(model, one, guide_queries(model, one), GROUP - 1, stream, UNCUT)
    assert torch.equal(alone.tokens[0], together.tokens[1, 1:])
    torch.testing.assert_close(alone.logp[0], together.logp[1, 1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("adapted", [False, True])
@torch.no_grad()
def test_dead_rows_are_never_multiplied(adapted):
    model = small_model.build()
    if adapted:
        small_model.adapt(model)
    expected = small_model.logits(model)
    width = model.arch.width
    for module in model.modules():
        if isinstance(module, BlendedAttention):
            base_weight(module.mat_qkv_guide)[width:] = math.nan
            base_weight(module.mat_qkv_target)[:width] = math.nan
            for dead in (module.q_bias_target, module.v_bias_guide):
                dead.fill_(math.nan)
    assert torch.equal(small_model.logits(model), expected)
    assert sampled(model)[2].logits.isfinite().all()


def test_what_belongs_to_a_condition_runs_once_whatever_the_group(monkeypatch):
    model = small_model.build()
    rows: dict[str, list[int]] = {"guide": [], "target": [], "encoder": [], "proj": []}
    queries, keys_values, project = BlendedAttention.queries, BlendedAttention.keys_values, attention.project

    def count_queries(self, guides, *modulation):
        rows["guide"].append(guides.shape[0])
        return queries(self, guides, *modulation)

    def count_keys_values(self, x, *modulation):
        rows["target"].append(x.shape[0] * x.shape[1])
        return keys_values(self, x, *modulation)

    def count_project(layer, x, *args, **kwargs):
        if layer in [block.attn.proj for block in model.blocks]:
            rows["proj"].append(x.shape[0] * x.shape[1])
        return project(layer, x, *args, **kwargs)

    monkeypatch.setattr(BlendedAttention, "queries", count_queries)
    monkeypatch.setattr(BlendedAttention, "keys_values", count_keys_values)
    monkeypatch.setattr(attention, "project", count_project)
    model.style_encoder.register_forward_hook(lambda module, given, out: rows["encoder"].append(out.shape[0]))
    sampled(model)
    depth, scales, conditions = model.arch.depth, model.arch.scales, 2
    assert rows["guide"] == [conditions] * depth
    assert rows["encoder"] == [conditions]
    # Once per block and scale, for both streams together.
    assert rows["target"] == rows["proj"] == [conditions * GROUP] * (depth * scales)


def test_known_tokens_spare_the_encoder(monkeypatch):
    model = small_model.build()
    style, content, _ = small_model.inputs(model)
    expected = encode_conditions(model, style, content)
    idx_Bl = model.vae.img_to_idxBl(torch.cat([style, content]))
    monkeypatch.setattr(type(model.vae), "img_to_idxBl", lambda *_: pytest.fail("tokenised again"))
    known = encode_conditions(model, style, content, idx_Bl)
    assert torch.equal(known.guides, expected.guides)


@torch.no_grad()
def test_with_l2_norm_queries_have_the_learned_length_at_most_100():
    model = small_model.build()
    layer, still = model.blocks[0].attn, torch.zeros(1, 1, model.arch.width)
    layer.scale_mul_1H11.copy_(torch.tensor([math.log(3), math.log(1000)]).view(1, 2, 1, 1))
    lengths = layer.queries(torch.randn(1, 10, model.arch.width), still, still).norm(dim=-1)
    torch.testing.assert_close(lengths[:, 0], torch.full_like(lengths[:, 0], 3.0))
    torch.testing.assert_close(lengths[:, 1], torch.full_like(lengths[:, 1], 100.0))


@torch.no_grad()
def test_without_l2_norm_queries_are_scaled_by_a_quarter_over_the_root_of_64():
    model = small_model.build(attn_l2_norm=False)
    layer, guides = model.blocks[0].attn, torch.randn(1, 10, model.arch.width)
    scale, shift = torch.randn(2, 1, 1, model.arch.width)
    modulated = F.layer_norm(guides, guides.shape[-1:], eps=1e-6) * (1 + scale) + shift
    plain = modulated @ layer.mat_qkv_guide.weight[: model.arch.width].T + layer.q_bias_guide
    ours = layer.queries(guides, scale, shift).transpose(1, 2).flatten(2)
    torch.testing.assert_close(ours, plain / 32, atol=1e-5, rtol=1e-5)


def test_style_strength_moves_alphas_within_bounds():
    model = small_model.build()
    plain, strong = model.alphas(), model.alphas(1.0)
    torch.testing.assert_close(strong, (plain + 0.5).clamp(0.01, 0.99))
    assert plain.shape == (model.arch.tokens, 1)

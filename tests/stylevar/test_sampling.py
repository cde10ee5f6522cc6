"""What is drawn, what is cut, and what is recorded of it."""

from __future__ import annotations

import pytest
import torch

from stylevar.sampling import (
    CoupledStreams,
    SharedStream,
    TrajectoryStreams,
    draw_tokens,
    level_over_cut,
    pack_support,
    support_of,
    trajectory_seed,
    trajectory_seeds,
    unpack_support,
)
from stylevar.sampling_config import SamplingConfig


def kept_tokens(logits: list[float], top_k: int = 0, top_p: float = 0.0) -> list[int]:
    keep = support_of(torch.tensor(logits), top_k, top_p)
    return list(range(len(logits))) if keep is None else keep.nonzero().flatten().tolist()


PROBS = torch.tensor([0.05, 0.4, 0.1, 0.3, 0.15])
LOGITS = PROBS.log().tolist()


def test_top_k_keeps_the_best_and_their_ties():
    assert kept_tokens(LOGITS, top_k=2) == [1, 3]
    assert kept_tokens([1.0, 2.0, 1.0, 0.0], top_k=2) == [0, 1, 2]
    assert kept_tokens(LOGITS, top_k=0) == kept_tokens(LOGITS, top_k=99) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("top_p", "kept"), [(0.3, [1]), (0.5, [1, 3]), (0.75, [1, 3, 4]), (0.96, [0, 1, 2, 3, 4])])
def test_top_p_keeps_the_smallest_set_that_holds_the_share(top_p, kept):
    assert kept_tokens(LOGITS, top_p=top_p) == kept


def test_top_p_is_a_share_of_what_top_k_left():
    # Of the three best (0.4, 0.3, 0.15) two hold 0.82.
    assert kept_tokens(LOGITS, top_k=3, top_p=0.8) == [1, 3]
    assert kept_tokens(LOGITS, top_k=3, top_p=0.85) == [1, 3, 4]


def test_a_tiny_share_keeps_the_largest():
    assert kept_tokens(LOGITS, top_p=1e-9) == [1]


def brute_force_keep(logits: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Sort, cut at k, add from the top until the share is reached."""
    keep = torch.zeros_like(logits, dtype=torch.bool)
    for row, out in zip(logits.flatten(0, -2), keep.view(-1, keep.shape[-1]), strict=True):
        order = row.argsort(descending=True)[:top_k]
        share, held = row[order].double().softmax(0), 0.0
        for token, p in zip(order.tolist(), share.tolist(), strict=True):
            out[token] = True
            held += p
            if held >= top_p:
                break
    return keep


def test_truncation_equals_sorting_by_hand():
    logits = 3 * torch.randn(5, 7, 50, generator=torch.Generator().manual_seed(0))
    for top_k, top_p in [(20, 0.9), (50, 0.5), (5, 0.99)]:
        assert torch.equal(support_of(logits, top_k, top_p), brute_force_keep(logits, top_k, top_p))


EVERY_STREAM = pytest.mark.parametrize("streams", [TrajectoryStreams, CoupledStreams])


@EVERY_STREAM
def test_streams_draw_with_the_given_probabilities(streams):
    count = 40_000
    stream = streams(torch.tensor([[7]]), count, torch.device("cpu"))
    tokens = stream.draw(PROBS.expand(1, 1, count, 5), slice(0, count))
    frequency = tokens.flatten().bincount(minlength=5) / count
    assert torch.allclose(frequency, PROBS, atol=4 * (0.25 / count) ** 0.5)


def test_coupled_streams_draw_the_same_from_close_policies():
    seeds, count = torch.tensor([[5]]), 20_000
    probs = (2 * torch.randn(1000, generator=torch.Generator().manual_seed(0))).softmax(-1)
    close = probs * (1 + 0.05 * torch.randn(1000, generator=torch.Generator().manual_seed(1))).clamp_min(0)
    close = close / close.sum()
    distance = (probs - close).abs().sum() / 2
    draws = [
        CoupledStreams(seeds, count, torch.device("cpu")).draw(p.expand(1, 1, count, 1000), slice(0, count))
        for p in (probs, close)
    ]
    differ = (draws[0] != draws[1]).float().mean()
    assert 0 < differ <= 2 * distance + 4 * (0.25 / count) ** 0.5  # 2 TV / (1 + TV) bounds Gumbel-max coupling


def test_coupled_streams_refuse_to_draw_out_of_order():
    stream = CoupledStreams(torch.tensor([[5]]), 10, torch.device("cpu"))
    with pytest.raises(ValueError, match="in order"):
        stream.draw(PROBS.expand(1, 1, 4, 5), slice(6, 10))


@EVERY_STREAM
def test_a_cut_token_is_never_drawn(streams):
    probs = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0]).expand(1, 1, 5000, 5)
    stream = streams(torch.tensor([[3]]), 5000, torch.device("cpu"))
    assert set(stream.draw(probs, slice(0, 5000)).flatten().tolist()) == {1, 3}


def test_rounding_at_the_ends_cannot_reach_a_cut_token():
    probs = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0]).expand(1, 1, 5000, 5)
    stream = TrajectoryStreams(torch.tensor([[3]]), 5000, torch.device("cpu"))
    stream.uniform[..., :3] = torch.tensor([0.0, 0.5, 1.0])
    assert set(stream.draw(probs, slice(0, 5000)).flatten().tolist()) == {1, 3}


@EVERY_STREAM
def test_a_trajectory_draws_the_same_whatever_is_beside_it(streams):
    probs = torch.rand(2, 3, 10, 6, generator=torch.Generator().manual_seed(1))
    seeds = torch.tensor([[1, 2, 3], [4, 5, 6]])
    whole = streams(seeds, 10, torch.device("cpu")).draw(probs, slice(0, 10))
    alone = streams(seeds[1:, 2:], 10, torch.device("cpu"))
    parts = [alone.draw(probs[1:, 2:, at], at) for at in (slice(0, 4), slice(4, 10))]
    assert torch.equal(torch.cat(parts, dim=2), whole[1:, 2:])


def test_parallel_sums_cannot_reach_a_cut_token():
    cumulative, probs = torch.tensor([0.2, 0.2000001, 0.5, 0.4999999]), torch.tensor([0.2, 0.0, 0.3, 0.0])
    assert level_over_cut(cumulative, probs).tolist() == pytest.approx([0.2, 0.2, 0.5, 0.5], abs=1e-8)


def test_seeds_depend_on_everything_that_names_a_trajectory():
    seeds = trajectory_seeds(0, 1, ("a", "b"), 3)
    assert seeds.shape == (2, 3)
    assert len(set(seeds.flatten().tolist())) == 6
    assert seeds[1, 2] == trajectory_seed(0, 1, "b", 2)
    assert len({trajectory_seed(*names) for names in [(0, 1, "a", 0), (1, 1, "a", 0), (0, 2, "a", 0)]}) == 3


def test_a_draw_records_full_log_probs_and_the_kept_mass():
    logits = torch.randn(2, 3, 4, 30, generator=torch.Generator().manual_seed(2))
    draw = draw_tokens(
        logits, SamplingConfig(temperature=0.7, top_k=5, top_p=0.0), SharedStream(0, torch.device("cpu")), slice(0, 4)
    )
    full = (logits / 0.7).log_softmax(-1)
    assert torch.allclose(draw.logp, full.gather(-1, draw.tokens.unsqueeze(-1)).squeeze(-1))
    assert torch.allclose(draw.kept_mass.exp(), (full.exp() * draw.keep).sum(-1))
    assert draw.keep.sum(-1).eq(5).all()
    assert draw.keep.gather(-1, draw.tokens.unsqueeze(-1)).all()


def test_without_truncation_no_mass_is_cut():
    off = SamplingConfig(top_k=0, top_p=0.0)
    draw = draw_tokens(torch.zeros(1, 1, 4, 9), off, SharedStream(0, torch.device("cpu")), slice(0, 4))
    assert draw.keep is None
    assert draw.kept_mass.eq(0).all()


@pytest.mark.parametrize("vocab", [1, 8, 13, 64])
def test_packing_a_support_loses_nothing(vocab):
    keep = torch.rand(2, 3, vocab, generator=torch.Generator().manual_seed(vocab)) > 0.5
    packed = pack_support(keep)
    assert packed.dtype == torch.uint8
    assert packed.shape == (2, 3, -(-vocab // 8))
    assert torch.equal(unpack_support(packed, vocab), keep)

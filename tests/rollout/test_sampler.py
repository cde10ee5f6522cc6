"""Groups of trajectories: the same whatever is sampled beside them, and what is recorded is what was drawn from."""

from __future__ import annotations

import dataclasses

import pytest
import small_model
import torch

from rollout.config import RolloutConfig
from rollout.sampler import ConditionCache, GroupSampler
from stylevar.capture import Captured
from stylevar.conditions import guide_queries, teacher_forced
from stylevar.contracts import ConditionBatch, PolicyVersion
from stylevar.errors import UserError
from stylevar.images import pm1_to_u8, u8_to_pm1
from stylevar.sampling import CoupledStreams, TrajectoryStreams, trajectory_seeds, unpack_support

ROLES = ("content", "style", "target")
VERSION = PolicyVersion(1, 7)
CONFIG = RolloutConfig(group=4, top_k=20, top_p=0.9)


@pytest.fixture(scope="module")
def model():
    model = small_model.build()
    small_model.adapt(model)
    return model


@pytest.fixture(scope="module")
def batch(model) -> ConditionBatch:
    return small_model.batch(model, 3)


def some(batch: ConditionBatch, rows: list[int]) -> ConditionBatch:
    images = {name: getattr(batch, name)[rows] for name in ("content", "style", "target")}
    return ConditionBatch(tuple(batch.keys[i] for i in rows), **images)


@pytest.fixture(scope="module")
def whole(model, batch):
    return GroupSampler(model, CONFIG).sample(batch, seed=3, step=5, version=VERSION)


def test_shapes_and_types(model, batch, whole):
    size, tokens = model.arch.image_size, model.arch.tokens
    assert whole.keys == batch.keys
    assert whole.policy_version == VERSION
    assert (whole.tokens.shape, whole.tokens.dtype) == ((3, 4, tokens), torch.int16)
    assert (whole.logp.shape, whole.logp.dtype) == ((3, 4, tokens), torch.float32)
    assert (whole.kept_mass.shape, whole.kept_mass.dtype) == ((3, 4, tokens), torch.float32)
    assert (whole.images.shape, whole.images.dtype) == ((3, 4, 3, size, size), torch.uint8)
    assert torch.equal(whole.seeds, trajectory_seeds(3, 5, batch.keys, 4))
    assert whole.support is None
    assert (whole.kept_mass <= 0).all()


@torch.no_grad()
def test_images_are_the_decoded_tokens(model, whole):
    tokens = whole.tokens[2].long()
    images = model.vae.idxBl_to_img([tokens[:, s] for s in model.arch.scale_slices()])
    assert (pm1_to_u8(images).int() - whole.images[2].int()).abs().max() <= 1


def test_a_group_explores(whole):
    assert len({tuple(row) for row in whole.tokens[0].tolist()}) == 4


@pytest.mark.parametrize("rows", [[1], [2, 0]])
def test_conditions_do_not_depend_on_each_other(model, batch, whole, rows):
    part = GroupSampler(model, CONFIG).sample(some(batch, rows), seed=3, step=5, version=VERSION)
    assert torch.equal(part.tokens, whole.tokens[rows])
    torch.testing.assert_close(part.logp, whole.logp[rows], atol=1e-5, rtol=0)


@pytest.mark.parametrize("at_once", [1, 3, 4, 8])
def test_sampling_in_several_runs_changes_nothing(model, batch, whole, at_once):
    config = dataclasses.replace(CONFIG, rollout_batch=at_once)
    parts = GroupSampler(model, config).sample(batch, seed=3, step=5, version=VERSION)
    assert torch.equal(parts.tokens, whole.tokens)
    torch.testing.assert_close(parts.logp, whole.logp, atol=1e-5, rtol=0)
    assert (parts.images.int() - whole.images.int()).abs().max() <= 1


def test_coupled_samplers_agree_across_close_policies(batch):
    drawn = []
    for share in (1.0, 1.02):
        model = small_model.build()
        with torch.no_grad():
            for weight in model.head.parameters():
                weight.mul_(share)
        drawn.append(
            [
                GroupSampler(model, CONFIG, streams=streams).sample(batch, seed=3, step=5, version=VERSION).tokens
                for streams in (CoupledStreams, TrajectoryStreams)
            ]
        )
    coupled, plain = ((before == after).float().mean() for before, after in zip(*drawn, strict=True))
    assert plain < coupled < 1


def test_a_smaller_group_is_the_start_of_a_larger_one(model, batch, whole):
    fewer = GroupSampler(model, CONFIG).sample(batch, seed=3, step=5, version=VERSION, group=2)
    assert torch.equal(fewer.tokens, whole.tokens[:, :2])


@pytest.mark.parametrize("change", [{"seed": 4}, {"step": 6}])
def test_other_seeds_and_steps_draw_anew(model, batch, whole, change):
    again = GroupSampler(model, CONFIG).sample(batch, **({"seed": 3, "step": 5} | change), version=VERSION)
    assert not torch.equal(again.tokens, whole.tokens)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_recorded_support_renormalises_the_log_probs(model, batch, temperature):
    config = dataclasses.replace(CONFIG, logprob="support", temperature=temperature)
    cache = ConditionCache(model)
    drawn = GroupSampler(model, config, cache).sample(batch, seed=3, step=5, version=VERSION)
    with torch.no_grad():
        state = cache.get(batch)
        logits = teacher_forced(model, state, guide_queries(model, state), drawn.tokens) / temperature
    support = unpack_support(drawn.support, model.arch.V)
    chosen = drawn.tokens.long().unsqueeze(-1)
    assert support.gather(-1, chosen).all()
    assert support.sum(-1).max() <= 20
    within = logits.masked_fill(~support, -torch.inf).log_softmax(-1).gather(-1, chosen).squeeze(-1)
    torch.testing.assert_close(drawn.logp - drawn.kept_mass, within, atol=1e-5, rtol=0)


def test_conditions_are_encoded_once_and_the_oldest_forgotten(model, monkeypatch):
    cache, seen = ConditionCache(model, batches=2), []
    model.content_encoder.register_forward_hook(lambda module, given, out: seen.append(len(out)))
    batches = [small_model.batch(model, 2, seed=i, prefix=f"{i}-") for i in range(3)]
    for i in (0, 1, 0, 1, 2, 1, 0):  # 2 pushes 0 out
        cache.get(batches[i])
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("wrong", "flag"),
    [
        ({"group": 1}, "--group 1"),
        ({"top_p": 1.5}, "--top-p 1.5"),
        ({"top_k": -1}, "--top-k -1"),
        ({"temperature": 0.0}, "--temperature 0"),
        ({"rollout_batch": -1}, "--rollout-batch -1"),
        ({"decode_batch": -1}, "--decode-batch -1"),
    ],
)
def test_impossible_settings_name_the_flag(wrong, flag):
    with pytest.raises(UserError) as error:
        RolloutConfig(**wrong)
    assert error.value.for_command_line().startswith(flag)


def test_tokens_that_come_with_the_conditions_spare_the_tokenizer(model, batch, whole, monkeypatch):
    tokens = [torch.cat(model.vae.img_to_idxBl(u8_to_pm1(getattr(batch, role))), 1) for role in ROLES]
    known = dataclasses.replace(batch, tokens=torch.stack(tokens, 1).to(torch.int16))
    monkeypatch.setattr(model.vae, "img_to_idxBl", None)
    assert torch.equal(GroupSampler(model, CONFIG).sample(known, seed=3, step=5, version=VERSION).tokens, whole.tokens)


def on_the_spot(work):
    """In place of a CUDA graph: runs the work again, on the same tensors."""
    work()
    return work


def test_a_recorded_rollout_replays_with_new_conditions_seeds_and_weights():
    model = small_model.build()
    adapters = small_model.adapt(model)
    adapters.keep_in_place = True
    graphs = dataclasses.replace(CONFIG, cuda_graphs=True, logprob="support")
    recorded = GroupSampler(model, graphs, record=on_the_spot)
    direct = GroupSampler(model, dataclasses.replace(graphs, cuda_graphs=False))
    seen = []
    for step, count in enumerate((2, 2, 3, 2)):
        batch = small_model.batch(model, count, seed=step, prefix=f"{step}-")
        with torch.no_grad():
            adapters.parameters()[0].mul_(1.5)
        with adapters.effective_weights():
            pair = [sampler.sample(batch, seed=1, step=step, version=VERSION) for sampler in (recorded, direct)]
        for name in ("tokens", "logp", "kept_mass", "images", "support"):
            assert torch.equal(getattr(pair[0], name), getattr(pair[1], name)), name
        seen.append(pair[0].tokens)
    assert not torch.equal(seen[0], seen[1])
    assert len(recorded._recorded) == 2


def test_a_recording_refuses_other_shapes():
    captured = Captured(lambda values: [values[0] * 2], [torch.ones(3)], on_the_spot)
    assert captured([torch.full((3,), 4.0)])[0].tolist() == [8.0] * 3
    with pytest.raises(ValueError, match=r"recorded for torch.float32 \(3,\), got torch.float32 \(4,\)"):
        captured([torch.ones(4)])


def test_cuda_graphs_need_a_gpu(model):
    with pytest.raises(UserError, match="--cuda-graphs"):
        GroupSampler(model, dataclasses.replace(CONFIG, cuda_graphs=True))


def test_encoding_and_decoding_in_chunks_change_nothing(model, batch, whole):
    config = dataclasses.replace(CONFIG, decode_batch=3)
    parts = GroupSampler(model, config).sample(batch, seed=3, step=5, version=VERSION)
    assert torch.equal(parts.tokens, whole.tokens)
    assert (parts.images.int() - whole.images.int()).abs().max() <= 1
    caches = ConditionCache(model), ConditionCache(model, images=2)
    states = [cache.get(batch) for cache in caches]
    torch.testing.assert_close(states[1].guides, states[0].guides, atol=1e-6, rtol=0)
    for one, other in zip(states[1].adaln, states[0].adaln, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    tokens = [cache.tokenized(batch).tokens for cache in caches]
    assert torch.equal(*tokens)

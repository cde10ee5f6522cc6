"""Tokens beside the shards are those that the VQ-VAE would give, and no others are ever used."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny
import torch
from prepared import prepare

from data.convert.tokenize import tokenize
from data.patterns import expand_shards
from data.shards import TripletShards
from data.tokens import token_file
from stylevar.contracts import ConditionBatch
from stylevar.errors import UserError
from stylevar.images import u8_to_pm1

VAE = tiny.build().vae


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = prepare(tmp_path_factory.mktemp("set"), size=tiny.SIZE, shard_bytes=10_000)
    assert tokenize(out, VAE) == 24
    return out


def copied(out: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(out, tmp_path / "copy"))


def test_tokens_are_those_of_the_pictures(tokenized: Path) -> None:
    shards = TripletShards(expand_shards([tokenized]), vae=VAE.fingerprint())
    assert len(shards.index.paths) > 4
    for condition in map(shards.__getitem__, range(len(shards))):
        images = torch.stack([condition.content, condition.style, condition.target])
        expected = torch.cat(VAE.img_to_idxBl(u8_to_pm1(images)), dim=1)
        assert condition.tokens is not None
        assert condition.tokens.dtype == torch.int16
        assert torch.equal(condition.tokens.long(), expected)
    batch = ConditionBatch.stack([shards[0], shards[1]])
    assert batch.tokens is not None
    assert batch.tokens.shape == (2, 3, 14)


def test_without_token_files_or_interest_there_are_none(tokenized: Path, tmp_path: Path) -> None:
    assert TripletShards(expand_shards([tokenized]))[0].tokens is None
    bare = tiny.shard(tmp_path / "bare.tar", 2)
    assert TripletShards([bare], vae=VAE.fingerprint())[0].tokens is None


def test_it_goes_on_where_it_stopped(tokenized: Path, tmp_path: Path) -> None:
    out = copied(tokenized, tmp_path)
    files = sorted(out.glob("*.safetensors"))
    before = {file: file.read_bytes() for file in files}
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:50])
    assert 0 < tokenize(out, VAE) < 24
    assert {file: file.read_bytes() for file in files} == before
    assert tokenize(out, VAE) == 0


def test_tokens_of_another_vqvae_are_refused_and_replaced(tokenized: Path, tmp_path: Path) -> None:
    out = copied(tokenized, tmp_path)
    other = tiny.build(seed=1).vae
    assert other.fingerprint() != VAE.fingerprint()
    with pytest.raises(UserError, match=rf"written by the VQ-VAE {VAE.fingerprint()}, this one is {other.fingerprint()}"):
        TripletShards(expand_shards([out]), vae=other.fingerprint())
    tokenize(out, other)
    shards = TripletShards(expand_shards([out]), vae=other.fingerprint())
    expected = torch.cat(other.img_to_idxBl(u8_to_pm1(shards[0].style[None])), dim=1)
    tokens = shards[0].tokens
    assert tokens is not None
    assert torch.equal(tokens[1].long(), expected[0])


@pytest.mark.parametrize(
    ("fault", "message"),
    [("gone", "does not exist, but others do"), ("cut", "it is damaged"), ("new shard", "shard has been rewritten")],
)
def test_token_files_that_do_not_fit_are_refused(tokenized: Path, tmp_path: Path, fault: str, message: str) -> None:
    out = copied(tokenized, tmp_path)
    shard = expand_shards([out])[0]
    if fault == "gone":
        token_file(shard).unlink()
    elif fault == "cut":
        token_file(shard).write_bytes(token_file(shard).read_bytes()[:50])
    else:
        shard.write_bytes(shard.read_bytes() + bytes(512))
    with pytest.raises(UserError, match=message):
        TripletShards(expand_shards([out]), vae=VAE.fingerprint())


def test_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is 16x16, this VQ-VAE needs 12x12"):
        tokenize(prepare(tmp_path, 6), VAE)

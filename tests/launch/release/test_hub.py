"""Sharing on the hub, against a stand-in for it: what is pushed comes back, and refusals say what to do."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import hub_server
import pytest
import tiny
import yaml
from checkpoint_files import assert_same, refused
from hub_server import Hub
from huggingface_hub import constants

from launch.export import ReleaseConfig, main
from stylevar.checkpoint import load_pair
from stylevar.hub import fetch

REPO = "owner/model"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of its own with an empty cache, a valid token, and no word to the real one."""
    monkeypatch.setattr("stylevar.hub.ANSWER_SECONDS", 600.0)  # on a busy machine, too
    with hub_server.serve() as hub:
        point_at(monkeypatch, hub.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
        yield hub


def point_at(monkeypatch, url: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def weights(tmp_path) -> Path:
    """A model's folder with its tokenizer."""
    tiny.save(tmp_path / "weights")
    return tmp_path / "weights"


def push(source: Path, **flags) -> None:
    main(ReleaseConfig(str(source), push=REPO, vae=str(source), with_vae=True, **flags))


@pytest.mark.parametrize("lfs", [False, True])
def test_what_is_pushed_comes_back(hub: Hub, weights, capsys, monkeypatch, lfs):
    """Once with small files inside the commit, once as the hub wants weights, through LFS."""
    hub.lfs = lfs
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    push(weights, message="the first")
    files = hub.files(REPO)
    assert files is not None
    assert set(files) == {".gitattributes", "README.md", "model.safetensors", "config.json", "vqvae.safetensors"}
    assert hub.messages == ["the first"]
    assert bool(hub.blobs) == lfs
    assert f"--init {REPO} --vae {REPO} --revision {hub.head(REPO, 'main')}" in capsys.readouterr().out
    vae, model = load_pair(REPO, REPO)
    expected = tiny.build()
    assert_same(model.state_dict(), expected.state_dict())
    assert_same(vae.state_dict(), expected.vae.state_dict())
    assert model.arch == expected.arch


def test_a_revision_pins_the_weights(hub: Hub, weights, tmp_path):
    push(weights)
    first = hub.head(REPO, "main")
    tiny.save(tmp_path / "other", seed=1)
    push(tmp_path / "other")
    assert_same(load_pair(REPO, REPO, revision=first)[1].state_dict(), tiny.build().state_dict())
    assert_same(load_pair(REPO, REPO)[1].state_dict(), tiny.build(seed=1).state_dict())
    with refused("no revision no-such-tag", "check the id"):
        load_pair(REPO, REPO, revision="no-such-tag")
    with refused("revision main has no such file"):
        fetch(f"{REPO}:other.pth", "model.safetensors")


def test_a_branch_leaves_main_alone(hub: Hub, weights):
    push(weights, branch="trial", private=True)
    assert set(hub.files(REPO) or ()) == {".gitattributes"}
    assert hub.private[REPO]
    assert_same(load_pair(REPO, REPO, revision="trial")[1].state_dict(), tiny.build().state_dict())
    push(weights, branch="trial", message="again")


def test_a_public_repository_does_not_become_private_by_a_flag(hub: Hub, weights):
    push(weights)
    with refused("exists and is public"):
        push(weights, private=True)


def test_offline_the_cache_serves_and_only_the_cache(hub: Hub, weights, monkeypatch):
    push(weights)
    expected = load_pair(REPO, REPO)[1].state_dict()
    seen = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_same(load_pair(REPO, REPO)[1].state_dict(), expected)
    with refused("owner/unknown", "not in the cache", "HF_HUB_OFFLINE"):
        fetch("owner/unknown", "model.safetensors")
    with refused("HF_HUB_OFFLINE is set", "unset it"):
        push(weights)
    assert len(hub.requests) == seen


def test_a_hub_out_of_reach(hub: Hub, weights, monkeypatch):
    """The cache still serves; what is not in it, and an upload, end in a line that names the network."""
    push(weights)
    load_pair(REPO, REPO)
    point_at(monkeypatch, "http://127.0.0.1:9")
    waits: list[float] = []
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", waits.append)  # between attempts
    assert_same(load_pair(REPO, REPO)[1].state_dict(), tiny.build().state_dict())
    with refused(
        "cannot get model.safetensors of owner/unknown from http://127.0.0.1:9",
        f"not in the cache {constants.HF_HUB_CACHE}",
        "check the network",
        "HF_HUB_OFFLINE=1",
    ):
        fetch("owner/unknown", "model.safetensors")
    assert waits == []
    with refused("cannot reach the hub at http://127.0.0.1:9", "network"):
        push(weights)


def test_a_hub_that_hangs_up_is_asked_once(monkeypatch, tmp_path):
    monkeypatch.setattr("stylevar.hub.ANSWER_SECONDS", 600.0)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    calls = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            while True:
                try:
                    caller = server.accept()[0]
                except OSError:
                    return
                calls.append(caller.recv(100))
                caller.close()

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        point_at(monkeypatch, f"http://127.0.0.1:{server.getsockname()[1]}")
        for file in ("model.safetensors", "config.json"):
            with refused(f"cannot get {file} of owner/unknown", "HF_HUB_OFFLINE=1"):
                fetch("owner/unknown", file)
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert len(calls) == 1


def test_a_hub_that_says_nothing_is_given_up(monkeypatch, tmp_path):
    monkeypatch.setattr("stylevar.hub.ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as server:
        point_at(monkeypatch, f"http://127.0.0.1:{server.getsockname()[1]}")
        with refused("owner/unknown", "HF_HUB_OFFLINE=1"):
            fetch("owner/unknown", "model.safetensors")


def test_refusals(hub: Hub, weights, monkeypatch, tmp_path):
    with refused("owner/none", "no such repository", "check the id"):
        fetch("owner/none", "model.safetensors")
    hub.read_only = True
    with refused("HTTP 403", "write access to owner"):
        push(weights)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with refused("HTTP 401", "HF_TOKEN"):
        push(weights)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with refused("needs a token", "HF_TOKEN"):
        push(weights)
    assert not hub.branches


def test_the_card_tells_the_recipe_and_no_paths(hub: Hub, tmp_path):
    """Both stages' settings, data, the scores of this very model and an evaluation; not where it was made."""
    sft, run = tmp_path / "runs" / "sft", tmp_path / "runs" / "grpo"
    for folder in (sft, run):
        tiny.save(folder / "model")
        (folder / "checkpoints").mkdir()
    common = {"vae": str(sft / "model"), "runs": str(tmp_path / "runs"), "name": "n"}
    (sft / "config.yaml").write_text(yaml.safe_dump({**common, "epochs": 3, "shards": ["/secret/home/set/a.tar"]}))
    settings = {**common, "steps": 9, "init": str(sft / "model"), "learner": {"lr": 0.5}, "shards": "/secret/home/b-*.tar"}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    (run / "heldout").mkdir()
    for step, reward in ((0, -2.0), (9, -1.5)):
        parts = {"sharpness": [0.1, 0.3], "target_sharpness": [0.2, 0.2]}
        scores = {"step": step, "keys": ["a", "b"], "rewards": [[reward, reward], [reward, reward]], "components": parts}
        (run / "heldout" / f"heldout_{step:08d}.json").write_text(json.dumps(scores))
    summary = tmp_path / "summary.json"
    summary.write_text(json.dumps({"heldout": {"ssim": {"mean": 0.5, "standard_error": 0.01}}}))
    main(ReleaseConfig(str(run), push=REPO, with_vae=True, eval=summary, licence="mit"))
    card = (hub.files(REPO) or {})["README.md"].decode()
    assert card.startswith("---\nlicense: mit\n")
    for text in (
        "SFT then GRPO",
        "`epochs` | 3",
        "`learner.lr` | 0.5",
        "home/b-*.tar",
        "launch/infer.py --init owner/model",
    ):
        assert text in card, text
    assert "| heldout | 2 | reward | -2.0000 | -1.5000 | +0.5000 ± 0.0000 |" in card
    assert "| heldout, ssim | 0.5000 | standard error 0.01 |" in card
    assert "/secret" not in card
    assert str(tmp_path) not in card


def test_an_unusable_evaluation(hub: Hub, weights, tmp_path):
    for text, reason in (("{", "is not JSON"), ("[]", "is not a JSON object"), ("{}", "no entry with a mean")):
        (tmp_path / "summary.json").write_text(text)
        with refused("--eval", reason):
            push(weights, eval=tmp_path / "summary.json")
    with refused("cannot be read"):
        push(weights, eval=tmp_path / "none.json")

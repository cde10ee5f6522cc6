"""Hostile files: no pickle runs, random damage is refused, and the page keeps to its own files."""

from __future__ import annotations

import ast
import contextlib
import json
import pickle
import random
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from unittest.mock import MagicMock

import hub_server
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
import yaml
from campaign import ROOT, keeps_promises
from grpo_files import config as grpo_config
from huggingface_hub import constants
from PIL import Image, ImageCms

from data.index import index_triplets
from data.manifest import SCHEMA, read_manifest, rows_to_table
from data.shards import BadSample, TripletShards
from data.tokens import open_tokens, write_tokens
from data.triplets import UnusableImage, decode_rgb, decode_u8
from launch.configs.grpo import load_config
from launch.configs.io import as_kept
from launch.run.event_file import EventFile
from launch.run_report.record import read_run
from launch.stylise.config import AppConfig
from launch.stylise.pictures import Failures, read_pairs
from reward.weights import read_tensors
from stylevar.checkpoint import save_torch
from stylevar.config import ModelConfig
from stylevar.errors import UserError
from stylevar.hub import first_line
from stylevar.weight_files import read_file
from stylevar.yaml_files import write_yaml

PACKAGES = ("stylevar", "data", "reward", "rollout", "learner", "launch")


class Planted:
    """An object whose unpickling creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable, tuple[str, str]]:
        return open, (str(self.marker), "w")


@cache
def calls() -> list[tuple[str, str, set[str]]]:
    """(file, function, names of arguments) of every call in the code."""
    found = []
    for file in (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                named = {f"{keyword.arg}={ast.unparse(keyword.value)}" for keyword in node.keywords}
                found.append((str(file.relative_to(ROOT)), ast.unparse(node.func), named))
    return found


def test_nothing_in_the_code_can_run_a_file():
    """Pickles are read with weights_only, arrays without objects, YAML by a safe loader; one flag imports code."""
    loads = [call for call in calls() if call[1] == "torch.load"]
    assert loads
    assert all("weights_only=True" in named for _, _, named in loads)
    assert not [call for call in calls() if "allow_pickle=True" in call[2] or "weights_only=False" in call[2]]
    running = (
        "pickle.load",
        "pickle.loads",
        "pickle.Unpickler",
        "eval",
        "exec",
        "compile",
        "joblib.load",
        "yaml.unsafe_load",
    )
    assert not [call for call in calls() if call[1] in (*running, "yaml.full_load", "os.system", "torch.hub.load")]
    assert {file for file, name, _ in calls() if name == "yaml.load"} == {"stylevar/yaml_files.py"}
    importing = {file for file, name, _ in calls() if name.endswith("import_module") or name == "__import__"}
    assert importing == {"reward/custom.py", "reward/build.py", "launch/bench.py"}  # the last two from tables of ours
    assert "--reward package.module:Class" in (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert "package.module:Class" in (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")


def test_planted_pickles_do_not_run(tmp_path):
    marker = tmp_path / "ran"
    evil = Planted(marker)
    pickled = pickle.dumps(evil)
    pickle.loads(pickled).close()
    assert marker.exists()  # the trap works
    marker.unlink()
    readers: dict[str, Callable[[Path], object]] = {
        "model.pth": read_file,
        "raw.pth": read_file,
        "metric.pth": lambda path: read_tensors(path, "get it again"),
        "samples.npz": lambda path: dict(np.load(path)),
        "array.npy": np.load,
        "config.yaml": load_config,
    }
    save_torch({"x": evil}, tmp_path / "model.pth")
    (tmp_path / "raw.pth").write_bytes(pickled)
    save_torch({"x": evil}, tmp_path / "metric.pth")
    np.savez(tmp_path / "samples.npz", samples=np.array([evil], dtype=object))
    np.save(tmp_path / "array.npy", np.array([evil], dtype=object), allow_pickle=True)
    (tmp_path / "config.yaml").write_text(f"!!python/object/apply:builtins.open ['{marker}', 'w']\n")
    for name, read in readers.items():
        with pytest.raises((UserError, ValueError)):
            read(tmp_path / name)
        assert not marker.exists(), name
    # Old versions of Arrow unpickled this.
    metadata = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickled}
    field = pa.field("key", pa.string(), metadata=metadata)
    pq.write_table(pa.table([pa.array(["x"])], pa.schema([field])), tmp_path / "manifest.parquet")
    with pytest.raises(UserError):
        read_manifest(tmp_path)
    assert not marker.exists()
    (tmp_path / "run" / "tensorboard").mkdir(parents=True)
    (tmp_path / "run" / "tensorboard" / "events.out.tfevents.1.x").write_bytes(pickled)
    (tmp_path / "run" / "trajectories").mkdir()
    shutil.copy(tmp_path / "manifest.parquet", tmp_path / "run" / "trajectories" / "steps_1_2.parquet")
    read_run(tmp_path / "run")
    assert not marker.exists()


def encoded(ending: str, folder: Path) -> bytes:
    """A picture of every feature that our decoders read: EXIF, a colour profile, transparency."""
    image = tiny.picture(3, 24)
    exif = Image.Exif()
    exif[0x0112] = 6
    more = {"exif": exif} if ending in ("jpg", "png", "webp", "tif") else {}
    if ending in ("jpg", "png", "tif"):
        more["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image.save(folder / f"x.{ending}", **more)
    return (folder / f"x.{ending}").read_bytes()


def damages(content: bytes, tries: int, seed: int) -> list[bytes]:
    """`content` with flipped bytes, most of them near its start, overwritten stretches, and cuts."""
    chance = random.Random(seed)
    found = []
    for number in range(tries):
        changed = bytearray(content)
        reach = min(len(content), 200) if number % 2 else len(content)
        for _ in range(chance.choice((1, 1, 1, 4))):
            changed[chance.randrange(reach)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        found.append(bytes(changed[: chance.randrange(len(content))] if number % 5 == 0 else changed))
    return found


@pytest.mark.parametrize("tries", [40, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp", "tif", "gif"])
def test_pictures_with_random_damage(tmp_path, ending, tries):
    for data in damages(encoded(ending, tmp_path), tries, seed=1):
        for decode in (decode_rgb, decode_u8):
            try:
                decode(data)
            except UnusableImage:
                continue


def _shard(path: Path) -> None:
    shards = TripletShards(index_triplets([path]), max_bad_share=1.0)
    for number in range(len(shards)):
        try:
            shards[number]
        except BadSample:
            continue


def _tokens(path: Path) -> None:
    tokens = open_tokens([path.with_name("a.tar")], "vae")
    assert tokens is not None
    tokens.get(0, int(index_triplets([path.with_name("a.tar")]).places[0, 0, 0]))


def _events(path: Path) -> None:
    read_run(path.parent.parent)


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A sound file of every kind that has a reader in `READERS`."""
    folder = tmp_path_factory.mktemp("sound")
    for name in ("shard", "tokens", "model", "run/tensorboard", "set", "pairs"):
        (folder / name).mkdir(parents=True)
    inputs = folder / "inputs"
    inputs.mkdir()
    tiny.shard(folder / "shard" / "a.tar", 2)
    shard = tiny.shard(folder / "tokens" / "a.tar", 2)
    offsets = torch.from_numpy(np.sort(index_triplets([shard]).places[:, 0, 0]))
    write_tokens(shard, offsets, torch.zeros(2, 3, tiny.LENGTH), "vae")
    tensors = {"blocks.0.weight": torch.zeros(4, 4), "pos_1LC": torch.zeros(1, 4, 8)}
    save_torch({"model": tensors}, folder / "model" / "m.pth")
    torch.save({"model": tensors}, folder / "model" / "old.pth", _use_new_zipfile_serialization=False)
    shutil.copy(folder / "tokens" / "a.tokens.safetensors", folder / "model" / "m.safetensors")
    tiny.build().arch.save(folder / "model" / "config.json")
    write_yaml(folder / "run" / "config.yaml", as_kept(grpo_config(folder, folder)))
    events = EventFile(folder / "run" / "tensorboard")
    events.text(0, "host", json.dumps({"CPU cores": "2"}))
    events.scalars(1, {"reward/mean": 1.0, "merge/event/rollback": 1.0})
    events.image(1, "samples", torch.zeros(3, 8, 8, dtype=torch.uint8))
    events.close()
    row = {"key": "t", "dataset": "d", "split": "train", "shard": "a.tar", "content_offset": 0, "content_size": 5}
    pq.write_table(rows_to_table([row], SCHEMA), folder / "set" / "manifest.parquet")
    (folder / "pairs" / "pairs.csv").write_text('content,style,name\n"a.png",b.png,x\nc.png,d.png,\n')
    return folder


READERS: dict[str, Callable[[Path], object]] = {
    "shard/a.tar": _shard,
    "tokens/a.tokens.safetensors": _tokens,
    "model/m.pth": read_file,
    "model/old.pth": read_file,
    "model/m.safetensors": read_file,
    "model/config.json": ModelConfig.load,
    "run/config.yaml": load_config,
    "run/tensorboard/events": _events,
    "set/manifest.parquet": lambda path: read_manifest(path.parent),
    "pairs/pairs.csv": lambda path: read_pairs(path, Failures()),
}


@pytest.mark.parametrize("tries", [30, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", READERS)
def test_files_with_random_damage(sound, tmp_path, name, tries):
    """Whatever the damage, the reader takes the file or refuses it with a message of ours."""
    place = shutil.copytree(sound, tmp_path / "copy")
    path = next(place.glob(f"{name}*"))
    for data in damages(path.read_bytes(), tries, seed=2):
        path.write_bytes(data)
        with contextlib.suppress(UserError):
            READERS[name](path)


def test_compressed_checkpoints_are_refused(tmp_path):
    """torch writes none, and a few kilobytes of one could fill the memory."""
    import zipfile

    save_torch({"x": torch.zeros(1000)}, tmp_path / "sound.pth")
    with (
        zipfile.ZipFile(tmp_path / "sound.pth") as sound,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in sound.namelist():
            bomb.writestr(name, sound.read(name))
    with pytest.raises(UserError, match="compressed parts"):
        read_file(tmp_path / "bomb.pth")


SECRET = "hf_secret"


def test_the_token_is_in_no_message(tmp_path, monkeypatch):
    assert first_line(ValueError(f"Illegal header value b'Bearer {SECRET}\\x01'")) == "Illegal header value b'Bearer ...'"
    out = tmp_path / "out"
    tiny.save(tmp_path / "model")
    with hub_server.serve() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr("stylevar.hub.ANSWER_SECONDS", 600.0)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        for token in (SECRET, f"{SECRET}\x01x", f"{SECRET}\u00e9"):
            monkeypatch.setenv("HF_TOKEN", token)
            for program, words in {
                "export": [tmp_path / "model", "--out", out, "--push", "owner/model"],
                "infer": ["--init", "owner/model", "--out", out],
            }.items():
                ending = keeps_promises(tmp_path, program, words, [], (2,), [out, tmp_path / "cache"])
                assert SECRET not in ending.out + ending.err
    kept = [path for path in out.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert kept == []


def test_the_page_is_local_and_bounded(monkeypatch):
    """Against a stand-in for gradio, which need not be installed: what the page asks of it."""
    from launch.stylise import page

    gradio = MagicMock()
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    pipeline = MagicMock()
    pipeline.model.arch.scales = 5
    monkeypatch.setattr(page, "load_pipeline", lambda source: pipeline)
    monkeypatch.setattr(page, "build_scorer", MagicMock())
    page.serve(AppConfig(), block=False)
    blocks = gradio.Blocks.return_value.__enter__.return_value
    queue = blocks.queue.call_args.kwargs
    launch = blocks.queue.return_value.launch.call_args.kwargs
    assert 1 <= queue["max_size"] <= 100
    assert queue["default_concurrency_limit"] == 1
    assert launch["server_name"] == "127.0.0.1"
    assert launch["share"] is False
    assert launch["max_file_size"] == "64mb"
    (served,) = launch["allowed_paths"]
    assert {path.suffix for path in Path(served).iterdir()} <= {".jpg", ".json"}  # the demo's photographs and their authors


def test_the_nightly_run_looks_for_known_vulnerabilities():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]
    assert any("pip_audit" in step.get("run", "") for step in jobs["nightly"]["steps"])
    assert "report" in (ROOT / "SECURITY.md").read_text(encoding="utf-8").lower()

"""`launch/prepare.py` on corpora in the formats that they are distributed in, with the faults that they may have."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import tiny
from patience import HANG
from program import exit_code

from data.convert import block, run
from data.index import index_triplets
from data.manifest import MANIFEST, REJECTS
from data.patterns import expand_shards
from data.shards import TripletShards
from launch import prepare
from launch.benchmarks.generated import Written, write_imagepulse, write_omnistyle

ROOT = Path(__file__).parents[2]
HOLDOUTS = ["--holdout-content", "0.3", "--holdout-style", "0.3", "--holdout-pair", "0.2"]
SMALL = ["--size", "32", "--workers", "1", *HOLDOUTS]


def main(monkeypatch: pytest.MonkeyPatch, *argv: object) -> int:
    """The program's exit code."""
    return exit_code(monkeypatch, prepare.main, *argv)


def kinds(out: Path) -> Counter[str]:
    return Counter(pq.read_table(out / REJECTS)["kind"].to_pylist())


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def omnistyle(folder: Path, **options: bool) -> Written:
    return write_omnistyle(folder, contents=8, styles=5, targets=40, size=64, **options)


@pytest.mark.parametrize("packed", [False, True])
def test_omnistyle_with_every_fault(tmp_path, monkeypatch, capsys, packed):
    written = omnistyle(tmp_path / "in", packed=packed, faults=True)
    out = tmp_path / "out"
    assert main(monkeypatch, "omnistyle", tmp_path / "in", "--out", out, *SMALL) == 2
    assert "more than --max-reject-share 0.01" in capsys.readouterr().err
    assert kinds(out) == written.rejects
    assert not (out / MANIFEST).exists()
    # What is done is kept.
    monkeypatch.setattr(block, "prepare_picture", None)
    assert main(monkeypatch, "omnistyle", tmp_path / "in", "--out", out, *SMALL, "--max-reject-share", "0.5") == 0
    said = capsys.readouterr().out
    assert "40 triplets" in said
    assert "1 too large" in said
    assert not (out / ".parts").exists()
    assert kinds(out) == written.rejects
    index = index_triplets(expand_shards([out]))
    assert len(index) == written.triplets
    assert set(index.splits) == {"train", "val_pair", "val_style", "val_content"}
    names = pq.read_table(out / MANIFEST, columns=["content_name", "style_name", "target_name"]).to_pylist()
    assert len({row["content_name"] for row in names}) == 8
    for row in names:
        assert row["target_name"].rpartition(".")[0] == f"{row['content_name']}&&{row['style_name']}"
    assert main(monkeypatch, "check", out, "--workers", "1") == 0
    assert not list(tmp_path.parent.glob("out.png"))


def test_imagepulse_with_every_fault(tmp_path, monkeypatch, capsys):
    written = write_imagepulse(tmp_path / "in", archives=2, triplets=6, size=64, faults=True)
    out = tmp_path / "out"
    loose = [*SMALL, "--max-reject-share", "0.5"]
    assert main(monkeypatch, "imagepulse", tmp_path / "in", "--out", out, *loose) == 0
    assert kinds(out) == written.rejects
    rows = pq.read_table(out / MANIFEST).to_pylist()
    assert len(rows) == written.triplets == 12
    assert dict(rows[3]["flags"]) == {"artifacts.blurred": True, "artifacts.watermark": False, "approved": True}
    assert dict(rows[1]["scores"]) == {"score.aesthetic": 5.0}
    assert main(monkeypatch, "check", out, "--workers", "1") == 0
    meta = TripletShards(expand_shards([out])).meta(3)
    assert meta["flags"]["artifacts.blurred"] is True

    filtered = tmp_path / "filtered"
    wanted = ["--drop-flag", "artifacts.blurred", "--min-score", "score.aesthetic", "5"]
    assert main(monkeypatch, "imagepulse", tmp_path / "in", "--out", filtered, *loose, *wanted) == 0
    kept = {row["target_name"][-10:-6] for row in pq.read_table(filtered / MANIFEST).to_pylist()}
    assert kept == {"0001", "0002", "0004", "0005"}
    reasons = pq.read_table(filtered / REJECTS).to_pylist()
    assert {row["reason"] for row in reasons if row["kind"] == "filtered"} == {
        "flag artifacts.blurred",
        "score score.aesthetic is 4.0, below 5.0",
    }


def test_a_cut_archive_is_told(tmp_path, monkeypatch, capsys):
    omnistyle(tmp_path / "in", packed=True)
    (tmp_path / "in" / "OmniStyle-150K.tar.part_ac").unlink()
    assert (
        main(monkeypatch, "omnistyle", tmp_path / "in", "--out", tmp_path / "out", *SMALL, "--max-reject-share", "0.1") == 0
    )
    assert kinds(tmp_path / "out") == Counter(["damaged archive", "unreadable image"])
    assert "1 damaged archive" in capsys.readouterr().out


def test_the_result_depends_on_neither_workers_nor_interruptions(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "BLOCK", 7)
    omnistyle(tmp_path / "in")
    flags = ["--size", "32", *HOLDOUTS]
    assert main(monkeypatch, "omnistyle", tmp_path / "in", "--out", tmp_path / "one", *flags, "--workers", "1") == 0
    assert main(monkeypatch, "omnistyle", tmp_path / "in", "--out", tmp_path / "two", *flags, "--workers", "2") == 0
    convert_block, done = run.convert_block, []

    def interrupted(*args):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(args[0].name)
        return convert_block(*args)

    monkeypatch.setattr(run, "convert_block", interrupted)
    again = ["omnistyle", tmp_path / "in", "--out", tmp_path / "three", *flags, "--workers", "1"]
    assert main(monkeypatch, *again) == 130
    assert not list((tmp_path / "three").glob("*.tar"))
    later = []
    monkeypatch.setattr(run, "convert_block", lambda *args: later.append(args[0].name) or convert_block(*args))
    assert main(monkeypatch, *again) == 0
    assert len(later) == 3
    assert not set(done) & set(later)
    assert files(tmp_path / "one") == files(tmp_path / "two") == files(tmp_path / "three")


def test_a_source_that_changed_is_read_again(tmp_path, monkeypatch):
    write_imagepulse(tmp_path / "in", archives=1, triplets=2, size=64)
    out = ["imagepulse", tmp_path / "in", "--out", tmp_path / "out", *SMALL]
    monkeypatch.setattr(run, "assemble", lambda *_: sys.exit(5))
    assert main(monkeypatch, *out) == 5
    monkeypatch.undo()
    write_imagepulse(tmp_path / "in", archives=1, triplets=3, size=64)
    assert main(monkeypatch, *out) == 0
    assert len(index_triplets(expand_shards([tmp_path / "out"]))) == 3


def test_pairs_are_conditions_without_a_target(tmp_path, monkeypatch, capsys):
    omnistyle(tmp_path / "in")
    source = [tmp_path / "in" / "content", "--styles", tmp_path / "in" / "style"]
    assert main(monkeypatch, "pairs", *source, "--count", 12, "--out", tmp_path / "out", *SMALL) == 0
    rows = pq.read_table(tmp_path / "out" / MANIFEST).to_pylist()
    assert len({(row["content_id"], row["style_id"]) for row in rows}) == 12
    assert {row["target_offset"] for row in rows} == {row["target_id"] for row in rows} == {None}
    assert main(monkeypatch, "check", tmp_path / "out", "--workers", "1") == 0
    assert main(monkeypatch, "pairs", *source, "--count", 100, "--out", tmp_path / "no", *SMALL) == 2
    assert "--count 100: must be from 1 to 40, the number of combinations" in capsys.readouterr().err


def test_a_source_with_names_of_any_kind(tmp_path, monkeypatch, capsys):
    source = tmp_path / os.fsdecode(b"\xe9 [v1]")
    for role in ("content", "style", "target"):
        (source / role).mkdir(parents=True)
        for number, name in enumerate((b"caf\xe9.png", b"[1] -x.png", "漢字.png".encode(), b"x" * 251 + b".png")):
            (source / role / os.fsdecode(name)).write_bytes(tiny.png(number, 40))
        (source / role / "._a.png").touch()
    (source / "content" / os.fsdecode(b"alone\xff.png")).write_bytes(tiny.png(0, 40))
    out = tmp_path / "out [v1]"
    argv = ["folder", source, "--out", out, *SMALL, "--max-reject-share", "0.5"]
    assert main(monkeypatch, *argv) == 0, capsys.readouterr().err
    names = pq.read_table(out / MANIFEST)["content_name"].to_pylist()
    assert sorted(names) == sorted(f"content/{n}.png" for n in ("caf\\udce9", "[1] -x", "漢字", "x" * 251))
    assert pq.read_table(out / REJECTS)["name"].to_pylist() == ["alone\\udcff"]
    assert main(monkeypatch, "check", out, "--workers", "1") == 0


def test_a_set_goes_to_a_folder_that_can_hold_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "in").mkdir()
    for name, message in {b"x" * 256: "has 256 bytes", b"caf\xe9": "is not UTF-8"}.items():
        for role in ("content", "style", "target"):
            (tmp_path / "in" / role).mkdir(exist_ok=True)
            (tmp_path / "in" / role / "a.png").write_bytes(tiny.png(1, 40))
        assert main(monkeypatch, "folder", tmp_path / "in", "--out", tmp_path / os.fsdecode(name), *SMALL) == 2
        assert message in capsys.readouterr().err
    assert main(monkeypatch, "folder", tmp_path / "in", "--out", tmp_path / "o", "--dataset", "x" * 41, *SMALL) == 2
    assert "at most 40 characters" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_tokens_on_the_way(tmp_path, monkeypatch, capsys):
    omnistyle(tmp_path / "in")
    _, vae = tiny.save(tmp_path / "model")
    flags = [*SMALL, "--size", tiny.SIZE, "--tokenize", vae, "--patch-nums", 1, 2, 3]
    assert main(monkeypatch, "omnistyle", tmp_path / "in", "--out", tmp_path / "out", *flags) == 0
    assert "40 triplets tokenised" in capsys.readouterr().out
    assert TripletShards(expand_shards([tmp_path / "out"]), vae=tiny.build().vae.fingerprint())[0].tokens is not None
    assert main(monkeypatch, "tokenize", tmp_path / "out", "--tokenize", vae, "--patch-nums", 1, 2, 3) == 0
    assert "0 triplets tokenised" in capsys.readouterr().out


DAMAGE = {
    "cut": "damaged shard",
    "flipped": "unreadable image",
    "unknown": "unknown shard",
    "moved": "other place",
    "leak": "split leak",
    "twice": "duplicate",
    "missing": "not in manifest",
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    omnistyle(folder / "in")
    with pytest.MonkeyPatch.context() as patch:
        assert main(patch, "omnistyle", folder / "in", "--out", folder / "out", *SMALL) == 0
    return folder / "out"


@pytest.mark.parametrize("damage", DAMAGE)
def test_check_finds(sound, tmp_path, monkeypatch, capsys, damage):
    out = tmp_path / "out"
    out.mkdir()
    for name, data in files(sound).items():
        (out / name).write_bytes(data)
    rows = pq.read_table(out / MANIFEST).to_pylist()
    shard = next(out.glob("train-*.tar"))
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:2000])
    elif damage == "flipped":
        row = next(row for row in rows if row["shard"] == shard.name)
        data = bytearray(shard.read_bytes())
        data[row["style_offset"] : row["style_offset"] + 100] = bytes(100)
        shard.write_bytes(data)
    elif damage == "unknown":
        tiny.shard(out / "stranger.tar", 1)
    else:
        train = [row for row in rows if row["split"] == "train"]
        if damage == "moved":
            train[0]["style_offset"] += 512
        elif damage == "leak":
            next(row for row in rows if row["split"] == "val_content")["content_id"] = train[0]["content_id"]
        elif damage == "twice":
            for role in ("content", "style", "target"):
                train[1][f"{role}_id"] = train[0][f"{role}_id"]
        else:
            rows.remove(train[0])
        schema = pq.read_schema(out / MANIFEST)
        pq.write_table(block.rows_to_table(rows, schema), out / MANIFEST)
    assert main(monkeypatch, "check", out, "--workers", "1") == 2
    captured = capsys.readouterr()
    assert f" {DAMAGE[damage]}" in captured.out
    assert "check.parquet" in captured.err
    assert DAMAGE[damage] in pq.read_table(out / "check.parquet")["kind"].to_pylist()


BAD = {
    "missing source": (["omnistyle", "{tmp}/none", "--out", "{tmp}/out"], "is not a folder"),
    "wrong source": (["imagepulse", "{in}", "--out", "{tmp}/out"], "has no .tar.gz archive"),
    "wrong layout": (["omnistyle", "{in}/content", "--out", "{tmp}/out"], "has none of content"),
    "size": (["omnistyle", "{in}", "--out", "{tmp}/out", "--size", "2"], "--size 2: must lie in [8, 4096]"),
    "share": (["omnistyle", "{in}", "--out", "{tmp}/out", "--max-reject-share", "2"], "--max-reject-share 2.0"),
    "dataset": (["omnistyle", "{in}", "--out", "{tmp}/out", "--dataset", "a.b"], "--dataset 'a.b'"),
    "holdout": (["omnistyle", "{in}", "--out", "{tmp}/out", "--holdout-style", "1"], "--holdout-style 1.0"),
    "no vae": (["omnistyle", "{in}", "--out", "{tmp}/out", "--tokenize", "{tmp}/no.pth"], "no.pth does not exist"),
    "done": (["omnistyle", "{in}", "--out", "{sound}", *SMALL], "is prepared already"),
    "other settings": (["omnistyle", "{in}", "--out", "{sound}"], "was prepared with picture"),
    "strange folder": (["omnistyle", "{in}", "--out", "{in}"], "is not empty and was not created"),
    "nothing to check": (["check", "{in}"], "manifest.parquet does not exist"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_code_2(sound, tmp_path, monkeypatch, capsys, case):
    argv, message = BAD[case]
    places = {"tmp": tmp_path, "in": sound.parent / "in", "sound": sound}
    assert main(monkeypatch, *(str(word).format(**places) for word in argv)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_ctrl_c_and_a_killed_worker_lose_nothing(tmp_path):
    write_omnistyle(tmp_path / "in", contents=8, styles=150, targets=1200, size=128)
    command = [sys.executable, str(ROOT / "launch" / "prepare.py"), "omnistyle", "in", "--out", "out", "--workers", "2"]
    parts = tmp_path / "out" / ".parts"

    def done() -> set[Path]:
        return set(parts.glob("omnistyle-?????.parquet"))

    def start_and_wait(blocks: int) -> subprocess.Popen:
        started = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
        until = time.monotonic() + HANG
        while len(done()) < blocks:
            assert time.monotonic() < until
            time.sleep(0.01)
        return started

    first = start_and_wait(1)
    worker = next(child for child in psutil.Process(first.pid).children() if "spawn_main" in " ".join(child.cmdline()))
    worker.kill()
    error = first.communicate(timeout=HANG)[1]
    assert first.returncode == 2
    assert "a worker process was killed" in error
    assert "Traceback" not in error
    earlier = {path: path.stat().st_mtime_ns for path in done()}
    assert 1 <= len(earlier) < 8

    second = start_and_wait(len(earlier) + 1)
    os.killpg(second.pid, signal.SIGINT)
    error = second.communicate(timeout=HANG)[1]
    assert second.returncode == 130
    assert "Traceback" not in error
    assert {path: path.stat().st_mtime_ns for path in earlier} == earlier

    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0
    assert len(index_triplets(expand_shards([tmp_path / "out"]))) == 1200

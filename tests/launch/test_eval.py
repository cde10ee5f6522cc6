"""`launch/eval.py` on tiny models: what it writes, that it is right, and that it goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import types
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny
import torch
from PIL import Image
from program import exit_code

from launch import eval as program
from launch.common.defaults import DEMO_MODEL
from launch.evaluation import evaluate, measure, stylizer, sweep
from launch.evaluation.columns import choose_columns
from launch.evaluation.conditions import ShardSet, open_conditions, pictures_of
from launch.evaluation.config import EvalConfig
from launch.evaluation.pictures import ranked
from launch.evaluation.runner import PARTS, Stopped, file_name
from launch.evaluation.stylizer import CheckpointStylizer, Method, build_stylizer, parse_methods
from reward.base import MissingWeights
from reward.config import RewardConfig
from reward.scorer import build_scorer
from stylevar.errors import UserError
from stylevar.sampling_config import SamplingChoice

TRIPLETS = 5


class Copy:
    """The content itself, as often as asked for."""

    name = "copy"

    def samples(self, content_u8, style_u8, keys, group, seed):
        return content_u8[:, None].expand(-1, group, -1, -1, -1)


@pytest.fixture
def copying(monkeypatch):
    """Every baseline is `Copy`."""
    found = types.ModuleType("launch.evaluation.baselines.build")
    found.__dict__["build_baseline"] = lambda name, adain_vgg, adain_decoder, device: Copy()
    monkeypatch.setitem(sys.modules, "launch.evaluation.baselines", types.ModuleType("launch.evaluation.baselines"))
    monkeypatch.setitem(sys.modules, "launch.evaluation.baselines.build", found)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    tiny.save(folder / "one")
    tiny.save(folder / "two", seed=1)
    tiny.shard(folder / "heldout-0.tar", TRIPLETS)
    for name, count in {"content": 2, "style": 2}.items():
        (folder / name).mkdir()
        for i in range(count):
            tiny.picture(len(name) + i, 20).save(folder / name / f"{name[0]}{i}.png")
    return folder


def config(files: Path, out: Path, **settings) -> EvalConfig:
    given = {
        "methods": (f"one={files / 'one'}",),
        "out": out,
        "shards": (str(files / "heldout-*.tar"),),
        "batch": 2,
        "sampling": SamplingChoice(top_k=20),
        "device": "cpu",
    }
    return EvalConfig(**{**given, **settings})


def table(out: Path) -> dict[str, list]:
    return pq.read_table(out / "samples.parquet").to_pydict()


def test_what_it_writes(files, tmp_path, copying, capsys):
    methods = (f"one={files / 'one'}", f"two={files / 'two'}", "copy")
    program.main(config(files, tmp_path / "out", methods=methods, seeds=2, compare=("one", "two")))
    out = tmp_path / "out"
    rows = table(out)
    assert rows["method"] == ["one"] * 10 + ["two"] * 10 + ["copy"] * 5  # a deterministic method has one sample
    assert rows["sample"][:4] == [0, 1, 0, 1]
    summary = json.loads((out / "summary.json").read_text())
    ssim = summary["methods"]["one"]["ssim/target"]
    assert ssim["n"] == TRIPLETS
    assert ssim["mean"] == pytest.approx(sum(rows["ssim/target"][:10]) / 10)
    assert ssim["low"] < ssim["mean"] < ssim["high"]
    assert set(summary["tests"]) == {
        *("reward/target", "ssim/target", "edges/target", "lite/target", "color/target", "psnr/target", "retrieval/target")
    }
    assert "lpips" in summary["left_out"]
    markdown = (out / "summary.md").read_text()
    for part in (
        "| method | n | Reward (target) ↑ |",
        "SSIM (target) ↑",
        "one against two",
        "Left out",
        "vgg16-397923af.pth",
    ):
        assert part in markdown
    assert markdown in capsys.readouterr().out
    assert (out / "summary.csv").read_text().startswith("method,metric,better,mean,")
    with Image.open(out / "best_worst_copy.png") as picture:
        assert picture.width > picture.height / 2
    assert len(list((out / "images" / "one").iterdir())) == TRIPLETS
    assert not (out / "parts").exists()


def test_a_copied_content_is_measured_against_the_target(files, tmp_path, copying):
    program.main(config(files, tmp_path, methods=("copy",), overwrite=True))
    rows = table(tmp_path)
    batch = ShardSet((str(files / "heldout-*.tar"),)).batch(range(TRIPLETS))
    scores = build_scorer(RewardConfig()).score(batch.content[:, None], batch.references)
    torch.testing.assert_close(torch.tensor(rows["reward/target"]), scores.rewards[:, 0], atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.tensor(rows["ssim/target"]), scores.components["ssim"][:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.tensor(rows["psnr/target"]), scores.components["psnr"][:, 0], atol=1e-3, rtol=0)
    assert tuple(rows["key"]) == batch.keys


def test_both_references_and_a_weighted_reward(files, tmp_path, copying):
    reward = RewardConfig("lite=2,ssim=1")
    program.main(config(files, tmp_path / "out", methods=("copy",), against="both", reward=reward, limit=3))
    rows = table(tmp_path / "out")
    assert len(rows["key"]) == 3
    assert rows["lite/content"] == pytest.approx([0] * 3, abs=1e-5)
    assert rows["color/style"] != rows["color/target"]
    expected = [-2 * lite - (1 - ssim) for lite, ssim in zip(rows["lite/target"], rows["ssim/target"], strict=True)]
    assert rows["reward/target"] == pytest.approx(expected, abs=1e-5)


def test_a_reward_of_the_inputs_needs_no_targets(files, tmp_path, copying):
    reward = RewardConfig("lite@content=2,color@style=0.05")
    content, style = files / "content", files / "style"
    program.main(config(files, tmp_path / "inputs", methods=("copy",), content=content, style=style, reward=reward))
    rows = table(tmp_path / "inputs")
    assert rows["reward"] == pytest.approx([-0.05 * color for color in rows["color/style"]], abs=1e-4)
    assert "| method | n | Reward ↑ |" in (tmp_path / "inputs" / "summary.md").read_text()
    with pytest.raises(UserError, match="ssim compares with the target, which .* lack; write ssim@content"):
        config(files, tmp_path, content=content, style=style, reward=RewardConfig("ssim,color@style=0.05"))


def test_pairs_from_shards_are_measured_against_the_inputs(files, tmp_path, copying):
    pairs = str(tiny.shard(tmp_path / "pairs.tar", 3, targets=False))
    reward = RewardConfig("color@style=0.05,lite@content=1")
    program.main(config(files, tmp_path / "out", methods=("copy",), shards=(pairs,), reward=reward))
    rows = table(tmp_path / "out")
    assert rows["reward"] == pytest.approx([-0.05 * color for color in rows["color/style"]], abs=1e-4)
    assert not [name for name in rows if name.endswith("/target")]
    mixed = config(files, tmp_path / "mixed", shards=(pairs,), reward=RewardConfig("color@style=0.05,ssim"))
    with pytest.raises(UserError, match="ssim compares with the target, which these conditions lack"):
        program.main(mixed)
    with pytest.raises(UserError, match="--against target: pairs without targets"):
        program.main(config(files, tmp_path / "against", shards=(pairs,), against="target"))
    swept = config(files, tmp_path / "swept", sweep_temperature=(0.5,), sweep_shards=(pairs,))
    with pytest.raises(UserError, match="--sweep-shards hold pairs without one; write lite@content"):
        program.main(swept)


def test_a_reward_of_targets_and_inputs(files, tmp_path, copying):
    reward = RewardConfig("ssim=1,color@style=0.05")
    program.main(config(files, tmp_path / "out", methods=("copy",), against="both", reward=reward, limit=2))
    rows = table(tmp_path / "out")
    expected = [ssim - 1 - 0.05 * color for ssim, color in zip(rows["ssim/target"], rows["color/style"], strict=True)]
    assert rows["reward"] == pytest.approx(expected, abs=1e-5)


def test_samples_do_not_depend_on_batches(files, tmp_path):
    for batch in (1, 5):
        program.main(config(files, tmp_path / str(batch), batch=batch, seeds=2))
    one, five = (table(tmp_path / str(batch)) for batch in (1, 5))
    assert one["key"] == five["key"]
    assert one["ssim/target"] == pytest.approx(five["ssim/target"], abs=1e-5)


def test_it_goes_on_where_it_stopped(files, tmp_path, monkeypatch, capsys):
    whole = config(files, tmp_path / "whole")
    program.main(whole)
    cut = dataclasses.replace(whole, out=tmp_path / "cut")
    run, done = measure.Evaluator.run, []

    def interrupted(self, task):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(task)
        return run(self, task)

    monkeypatch.setattr(measure.Evaluator, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        program.main(cut)
    monkeypatch.setattr(measure.Evaluator, "run", lambda self, task: done.append(task) or run(self, task))
    program.main(cut)
    assert [task.number for task in done] == [0, 1, 2]
    assert "2 of 3 batches were already done" in capsys.readouterr().out
    again, first = table(cut.out), table(whole.out)
    del again["seconds"], first["seconds"]
    assert again == first


def test_results_are_kept_and_never_mixed(files, tmp_path, monkeypatch):
    settings = config(files, tmp_path / "out")
    program.main(settings)
    with pytest.raises(UserError, match="already holds results"):
        program.main(settings)
    program.main(dataclasses.replace(settings, overwrite=True, limit=2))
    assert len(table(settings.out)["key"]) == 2
    (settings.out / PARTS).mkdir()  # as if it had been cut short
    (settings.out / "samples.parquet").rename(settings.out / PARTS / "one-0.parquet")
    with pytest.raises(UserError, match="other settings or weights"):
        program.main(settings)
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.jpg").touch()
    with pytest.raises(UserError, match="holds no evaluation"):
        program.main(dataclasses.replace(settings, out=other, overwrite=True))
    assert (other / "cat.jpg").exists()


def test_without_targets(files, tmp_path, caplog):
    content = tmp_path / "content"
    content.mkdir()
    for picture in (files / "content").iterdir():
        (content / picture.name).write_bytes(picture.read_bytes())
    (content / "broken.png").write_bytes(b"no picture")
    program.main(config(files, tmp_path / "out", content=content, style=files / "style"))
    rows = table(tmp_path / "out")
    assert rows["key"] == ["c0__s0", "c0__s1", "c1__s0", "c1__s1"]
    assert {"ssim/content", "lite/content", "color/style"} <= set(rows)
    assert not any(name.endswith("/target") for name in rows)
    assert "broken.png" in caplog.text
    assert "SSIM (content) ↑" in (tmp_path / "out" / "summary.md").read_text()
    one_style = config(files, tmp_path / "zip", content=content, style=files / "style" / "s0.png", pairing="zip")
    with pytest.raises(UserError, match="zip: 3 contents and 1 styles"):
        program.main(one_style)


def test_pictures_of_any_name(files, tmp_path):
    odd = tmp_path / os.fsdecode(b"\xe9 [v1]")
    odd.mkdir()
    for name in (b"caf\xe9", b"[1] -x", "漢".encode() * 83, b"x" * 251):
        tiny.picture(1, 20).save(odd / os.fsdecode(name + b".png"))
    settings = config(files, tmp_path / "out", content=odd, style=files / "style" / "s0.png", pairing="all")
    program.main(settings)
    rows = table(tmp_path / "out")
    assert rows["key"] == sorted(["[1] -x__s0", "caf\\udce9__s0", f"{'漢' * 83}__s0", f"{'x' * 251}__s0"])
    assert len(list((tmp_path / "out" / "images" / "one").iterdir())) == 4


def test_a_list_of_files(files, tmp_path):
    names = ["caf\udce9.png", "plain.png"]
    for name in names:
        tiny.picture(1, 20).save(tmp_path / name)
    lines = [*names, "~nobody_of_that_name/x.png", "x" * 5000]
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + os.fsencode("\r\n".join(lines)))
    assert [path.name for path in pictures_of(tmp_path / "list.txt")[:2]] == names
    program.main(config(files, tmp_path / "out", content=tmp_path / "list.txt", style=files / "style" / "s0.png"))
    assert table(tmp_path / "out")["key"] == ["caf\\udce9__s0", "plain__s0"]
    (tmp_path / "list.txt").write_text("a.png\n", encoding="utf-16")
    with pytest.raises(UserError, match="is not a list of files in UTF-8"):
        pictures_of(tmp_path / "list.txt")


def test_pictures_that_are_not_read_are_told(files, tmp_path, caplog):
    tiny.picture(1, 20).save(tmp_path / "a.png")
    (tmp_path / "b.heic").touch()
    assert pictures_of(tmp_path) == [tmp_path / "a.png"]
    assert "b.heic: .heic files are not supported" in caplog.text


def test_pairs_stay_together_when_a_picture_is_left_out(files, tmp_path):
    for folder, broken in {"c": "0.png", "s": "2.png"}.items():
        (tmp_path / folder).mkdir()
        for number in range(3):
            tiny.picture(number, 20).save(tmp_path / folder / f"{number}.png")
        (tmp_path / folder / broken).write_bytes(b"no picture")
    program.main(config(files, tmp_path / "out", content=tmp_path / "c", style=tmp_path / "s", pairing="zip"))
    assert table(tmp_path / "out")["key"] == ["1__1"]


def test_results_go_to_a_folder_that_can_hold_them(files, tmp_path):
    for name, message in {b"x" * 256: "has 256 bytes", b"caf\xe9": "is not UTF-8"}.items():
        with pytest.raises(UserError, match=message):
            program.main(config(files, tmp_path / os.fsdecode(name)))
    assert list(tmp_path.iterdir()) == []


def test_pictures_of_another_size_are_refused(files, tmp_path):
    tiny.shard(tmp_path / "large-0.tar", 2, size=16)
    with pytest.raises(UserError, match="one makes pictures of 12x12, the conditions are 16x16"):
        program.main(config(files, tmp_path / "out", shards=(str(tmp_path / "large-0.tar"),)))


def test_missing_weights_leave_a_metric_out_unless_strict(files, tmp_path, caplog):
    columns, left_out = choose_columns(config(files, tmp_path), targets=True)
    assert {column.key for column in columns} == {f"{name}/target" for name in ("ssim", "edges", "lite", "color", "psnr")}
    assert {"lpips", "style", "dreamsim", "clip", "dino", "cfsd"} <= set(left_out)
    assert "vgg19-dcbb9e9d.pth" in caplog.text
    with pytest.raises(MissingWeights, match="--strict: .* needs the weights"):
        choose_columns(config(files, tmp_path, strict=True), targets=True)
    with pytest.raises(UserError, match="--reward lpips=1: lpips needs the weights"):
        choose_columns(config(files, tmp_path, reward=RewardConfig("lpips=1")), targets=True)


def test_methods_by_their_names(files, tmp_path):
    def parsed(*specs):
        return parse_methods(config(files, tmp_path, methods=specs))

    assert parsed("copy", "c=copy", "adain=d.pth", "adain2=adain") == (
        Method("copy", "copy", None),
        Method("c", "copy", None),
        Method("adain-lite", "adain", "d.pth"),
        Method("adain2", "adain", None),
    )
    # Without the paper's encoder it is not called by the paper's name.
    assert [method.name for method in parsed("adain")] == ["adain-lite"]
    with_vgg = config(files, tmp_path, methods=("adain",), adain_vgg=tmp_path / "vgg.pth")
    assert [method.name for method in parse_methods(with_vgg)] == ["adain"]
    assert parsed("sft=a/b", "runs/x/model", "b.pth") == (
        Method("sft", None, "a/b"),
        Method("x", None, "runs/x/model"),
        Method("b", None, "b.pth"),
    )
    assert parse_methods(config(files, tmp_path, checkpoint="b.pth")) == (Method("b", None, "b.pth"),)
    (tmp_path / "lr=1").mkdir()
    (tmp_path / "lr=1" / "my model.pth").touch()
    assert [method.name for method in parsed(str(tmp_path / "lr=1" / "my model.pth"))] == ["my_model"]
    assert [len(method.name) for method in parsed(f"{'x' * 200}.pth")] == [100]
    for specs, message in {(): "at least one", ("copy", "copy"): "two are named copy", ("=x",): "NAME=CHECKPOINT"}.items():
        with pytest.raises(UserError, match=message):
            parsed(*specs)
    with pytest.raises(UserError, match=r"--methods color_transfer: neither a method \(.*color-transfer.*\) nor a file"):
        parse_methods(config(files, tmp_path, methods=("color_transfer",)))
    with pytest.raises(UserError, match="--compare c: no such method; there are copy"):
        parse_methods(config(files, tmp_path, methods=("copy",), compare=("copy", "c")))


def test_ranks():
    assert ranked([1.0, 5.0, 3.0, 2.0, 4.0, 0.0], True, each=1) == {"best": [1], "median": [2], "worst": [5]}
    assert ranked([1.0, 5.0, 3.0], False) == {"best": [0], "median": [2], "worst": [1]}
    assert ranked([1.0], True) == {"best": [0], "median": [], "worst": []}


def test_file_names_stay_apart():
    assert file_name("a-b_1") == "a-b_1"
    assert file_name("a/b") != file_name("a:b")
    assert "/" not in file_name("a/b")
    long = [file_name("漢" * 100 + end) for end in "ab"]
    assert long[0] != long[1]
    assert max(len(name.encode()) for name in long) < 240


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--seeds", "0"], "--seeds 0: must be at least 1"),
        (["--content", "a.png"], "--content and --style belong together"),
        (["--reward", "pretty"], "unknown reward 'pretty'"),
        (["--checkpoint", "nowhere.pth"], "nowhere.pth"),
        (["--shards", "nowhere-*.tar"], "no shard matches"),
    ],
)
def test_mistakes_are_one_line_and_code_2(argv, message, tmp_path, monkeypatch, capsys):
    code = exit_code(monkeypatch, program.cli, *argv, "--out", tmp_path / "out")
    assert code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_ray_workers_find_the_same(files, tmp_path):
    methods = (f"one={files / 'one'}", f"two={files / 'two'}")
    for workers in (0, 2):
        program.main(config(files, tmp_path / str(workers), methods=methods, workers=workers))
    here, there = (table(tmp_path / str(workers)) for workers in (0, 2))
    assert here["key"] == there["key"]
    for name in ("ssim/target", "lite/target", "reward/target"):
        assert here[name] == pytest.approx(there[name], abs=1e-5)


def finished_run(folder: Path, model: Path, written: float) -> None:
    """A run's folder, as far as an evaluation looks at it."""
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copytree(model, folder / "model")
    (folder / "config.yaml").write_text(f"vae: {model / 'vqvae.safetensors'}\n")
    os.utime(folder / "config.yaml", (written, written))


def test_without_methods_the_demo_and_the_newest_run_are_evaluated(files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stylizer, "DEMO_MODEL", files / "one" / "model.safetensors")
    bare = dataclasses.replace(config(files, tmp_path), methods=None, out=None)
    program.main(bare)
    assert set(table(Path("runs/eval"))["method"]) == {"demo"}
    finished_run(Path("runs/old"), files / "two", written=1e9)
    finished_run(Path("runs/new one"), files / "two", written=1e9 + 1)
    finished_run(Path("runs/larger"), DEMO_MODEL.parent, written=1e9 + 2)  # of another size than the conditions
    (Path("runs/unfinished") / "checkpoints").mkdir(parents=True)
    (Path("runs/unfinished") / "config.yaml").touch()
    capsys.readouterr()
    program.main(bare)
    assert set(table(Path("runs/eval-2"))["method"]) == {"demo", "run-new_one"}
    assert f"evaluating demo ({files / 'one'}), run-new_one (runs/new one/model)" in capsys.readouterr().out
    program.main(dataclasses.replace(bare, overwrite=True))
    assert set(table(Path("runs/eval"))["method"]) == {"demo", "run-new_one"}
    assert not Path("runs/eval-3").exists()


def test_a_bare_evaluation_goes_on_where_it_stopped(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bare = dataclasses.replace(config(files, tmp_path), out=None)
    program.main(bare)
    monkeypatch.setattr(evaluate, "run_all", lambda *arguments: (_ for _ in ()).throw(Stopped()))
    with pytest.raises(SystemExit):
        program.main(bare)
    assert [path.name for path in sorted(Path("runs").iterdir())] == ["eval", "eval-2"]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    program.main(bare)
    assert (Path("runs/eval-2") / "summary.md").is_file()
    assert not Path("runs/eval-3").exists()


def test_each_model_is_sampled_at_its_own_best_temperature(files, tmp_path, monkeypatch, capsys):
    """On other triplets than those it is then evaluated on."""
    tiny.shard(tmp_path / "train-0.tar", 4, first=20)
    seen: list[tuple[str, float]] = []
    best = {"one": 0.4, "two": 2.0}

    def rewards(stylizer, temperature, conditions, scorer, config):
        assert conditions.keys == tuple(sorted(conditions.keys))
        assert len(conditions) == 3
        return torch.full((3,), -abs(temperature - best[stylizer.name]))

    monkeypatch.setattr(sweep, "mean_rewards", rewards)
    sample = CheckpointStylizer.samples
    monkeypatch.setattr(
        CheckpointStylizer,
        "samples",
        lambda self, *args: (seen.append((self.name, self.temperature)), sample(self, *args))[1],
    )
    methods = (f"one={files / 'one'}", f"two={files / 'two'}")
    settings = config(files, tmp_path / "out", methods=methods, sweep_temperature=(1.0, 0.4, 2.0), sweep_conditions=3)
    program.main(dataclasses.replace(settings, sweep_shards=(str(tmp_path / "train-*.tar"),)))
    assert set(seen) == {("one", 0.4), ("two", 2.0)}
    out = capsys.readouterr().out
    assert "one: 1: -0.600 (0.000), 0.4: 0.000 (0.000), 2: -1.600 (0.000): the best is 0.4" in out
    assert "two: 1: -1.000 (0.000), 0.4: -1.600 (0.000), 2: 0.000 (0.000): the best is 2" in out


def test_mean_rewards_are_those_of_samples_at_the_temperature(files, tmp_path):
    settings = config(files, tmp_path / "out")
    method = parse_methods(settings)[0]
    conditions = open_conditions(settings, 0)
    stylizer = build_stylizer(method, settings, torch.device("cpu"))
    scorer = build_scorer(RewardConfig())
    hot, cold = (sweep.mean_rewards(stylizer, t, conditions, scorer, settings) for t in (1.0, 0.01))
    batch = conditions.batch(range(len(conditions)))
    other = build_stylizer(dataclasses.replace(method, temperature=0.01), settings, torch.device("cpu"))
    images = other.samples(batch.content, batch.style, batch.keys, sweep.SAMPLES, settings.seed)
    torch.testing.assert_close(cold, scorer.score(images, batch.references).rewards.mean(1))
    assert not torch.equal(hot, cold)

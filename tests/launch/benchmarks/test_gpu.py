"""One command measures a GPU; on a CPU it can be tried."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.benchmarks import gpu, sft
from launch.benchmarks.config import Effort, Gpu, Sft
from launch.configs.shape import ModelShape
from stylevar.errors import UserError

TINY = ModelShape(depth=1, patch_nums=(1, 2, 3), ch=32, V=32, Cvae=8, ch_mult=(1, 1, 1), style_enc_dim=32)
STEP = "step --depth 1 --patch-nums 1 2 --ch 32 --lora-rank 2 --repeat 1 --warmup 0 --device cpu --json"


@pytest.mark.slow
def test_a_step_is_measured_in_its_own_process_and_profiled(tmp_path: Path) -> None:
    found = gpu.measure("step", f"{STEP} --profile {tmp_path / 'profile.txt'}", 600)
    assert found.problem is None
    name, seconds, rate, peak = found.row()
    assert (name, seconds != "", "TFLOP/s, mismatch" in rate, peak.endswith("GiB")) == ("step", True, True, True)
    assert "aten::" in (tmp_path / "profile.txt").read_text()
    gpu.write([found, gpu.Measured("other", "python", problem="no time left")], tmp_path)
    rows = json.loads((tmp_path / "gpu.json").read_text())
    assert rows[0]["result"]["step"]["seconds"] > 0
    assert "| other | no time left |  |  |" in (tmp_path / "gpu.md").read_text()


def test_what_goes_wrong_is_part_of_the_result() -> None:
    mistaken = gpu.measure("step", "step --mistyped", 600)
    assert mistaken.result is None
    assert mistaken.problem
    assert gpu.measure("step", STEP, 0.0).problem == "no time left"


def test_every_planned_command_is_one_that_the_program_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = []
    monkeypatch.setattr(gpu, "measure", lambda name, words, seconds: said.append(words) or gpu.Measured(name, words))
    monkeypatch.setattr(gpu.Measured, "row", lambda self: (self.name, "", "", ""))
    gpu.run(Gpu(tmp_path, device="cpu", small=True))
    assert len(said) == len(gpu.plan(Gpu(device="cpu")))
    assert "--cuda-graphs" in " ".join(gpu.plan(Gpu()).values())
    asked = []
    monkeypatch.setattr("sys.argv", ["bench.py"])
    from launch import bench

    monkeypatch.setattr(bench, "import_module", lambda name: type("Module", (), {"run": asked.append}))
    for words in said:
        monkeypatch.setattr("sys.argv", ["bench.py", *words.split()])
        bench.main()
    assert len(asked) == len(said)
    assert all(request.device == "cpu" and request.json for request in asked)


def test_sft_steps_are_measured_as_a_run_does_them() -> None:
    result = sft.measure(Sft(TINY, effort=Effort(repeat=2, warmup=0), batch=4, micro_batch=2, device="cpu"))
    assert result.triplets_per_s == pytest.approx(4 / result.seconds)
    assert "triplets/s" in result.text()
    with pytest.raises(UserError, match="--micro-batch 3: must divide --batch 4"):
        Sft(batch=4, micro_batch=3)

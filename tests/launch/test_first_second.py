"""No command loads what it runs before it has read its flags: `--help` and a mistyped flag take no seconds of imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(path.stem for path in (ROOT / "launch").glob("*.py") if path.stem != "__init__")
FORMER = "merge"
"""Tells its new name, whatever the flags."""
REQUIRED = {"bench": ["step"], "export": ["run"], "prepare": ["check", "set"], "train_adain": ["--shards", "train.tar"]}
"""What a command needs before it complains about a mistyped flag."""
RUNNER = """
import contextlib, io, json, runpy, sys, traceback

HEAVY = {
    "PIL", "dreamsim", "gradio", "huggingface_hub", "lpips", "matplotlib", "numpy", "onnxruntime", "open_clip", "pandas",
    "peft", "pyarrow", "ray", "safetensors", "scipy", "skimage", "sklearn", "tensorboard", "timm", "torch", "torchmetrics",
    "torchvision", "transformers", "webdataset",
}
tried = []

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            tried.append(name)
            raise ImportError(f"{name} is loaded before the flags are read")

def outcome(program, *words):
    "How a command ends if it cannot load anything heavy."
    sys.argv, out, end = [program, *words], io.StringIO(), None
    tried.clear()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            runpy.run_path(program, run_name="__main__")
        except SystemExit as error:
            end = error.code
        except ImportError:
            traceback.print_exc()
    return {"end": end, "tried": list(tried), "said": out.getvalue()}

sys.meta_path.insert(0, Refuse())
print(json.dumps({" ".join(words): outcome(*words) for words in json.loads(sys.argv[1])}))
"""


def outcomes(folder: Path, *lines: list[str]) -> list[dict[str, Any]]:
    """How command lines end, one after the other in one new process that cannot load anything heavy."""
    lines = tuple([str(ROOT / "launch" / f"{command}.py"), *words] for command, *words in lines)
    process = subprocess.run(
        [sys.executable, "-c", RUNNER, json.dumps(lines)], cwd=folder, capture_output=True, text=True, check=True
    )
    by_line = json.loads(process.stdout)
    return [by_line[" ".join(words)] for words in lines]


def loaded(modules: list[str], libraries: list[str]) -> list[str]:
    """Those of `libraries` that importing `modules` loads, in a new process."""
    program = (
        f"import json, sys, {', '.join(modules)}; print(json.dumps([name for name in {libraries} if name in sys.modules]))"
    )
    said = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found: list[str] = json.loads(said.splitlines()[-1])
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_flags_are_read_before_anything_heavy_is_loaded(command: str, tmp_path: Path) -> None:
    mistake = [command, *REQUIRED.get(command, []), "--mistyped", "1"]
    shown, mistyped = outcomes(tmp_path, [command, "--help"], mistake)
    assert (shown["tried"], mistyped["tried"]) == ([], []), shown["said"] + mistyped["said"]
    assert (shown["end"], mistyped["end"]) == (2 if command == FORMER else 0, 2)
    assert command == FORMER or "--mistyped" in mistyped["said"]


def test_the_demo_speaks_before_it_loads_anything_heavy(tmp_path: Path) -> None:
    [run] = outcomes(tmp_path, ["grpo"])
    assert run["tried"]
    assert run["said"].startswith("running with the settings of the embedded demo")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("modules", "unused"),
    [
        (["launch.cluster.start"], ["torch", "pyarrow"]),  # Ray starts first
        (["launch.cluster.start", "launch.rl.run"], ["peft", "timm", "torchmetrics", "transformers"]),
    ],
)
def test_the_driver_leaves_the_worker_s_libraries_to_the_worker(modules: list[str], unused: list[str]) -> None:
    assert loaded(modules, unused) == []


@pytest.mark.parametrize(
    ("module", "unused"),
    [
        ("launch.stylise.run", ["peft", "ray", "scipy", "timm", "torchmetrics", "transformers"]),
        ("launch.supervised.run", ["peft", "ray", "scipy", "timm", "torchmetrics", "transformers"]),
        ("launch.evaluation.evaluate", ["peft", "ray"]),
    ],
)
def test_programs_that_use_no_adapters_or_rewards_do_not_wait_for_their_libraries(module: str, unused: list[str]) -> None:
    assert loaded([module], unused) == []

"""What a user may call a model, in every command that takes one: each kind of source gives the same weights everywhere."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import grpo_files
import pytest
import tiny
import torch
import yaml
from checkpoint_files import assert_same, refused
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file

from launch import export, grpo
from launch.configs.io import absolute_source, to_plain
from launch.configs.sft import SftConfig
from launch.evaluation.config import EvalConfig
from launch.evaluation.stylizer import CheckpointStylizer, Method, build_stylizer
from launch.stylise.config import ModelSource
from launch.stylise.pretrained import load_pipeline
from launch.supervised.start import starting_model
from learner.grpo.trainer import Trainer
from stylevar.checkpoint import load_pair, read_architecture, save_model
from stylevar.errors import UserError
from stylevar.policy import Policy
from stylevar.weight_files import State

CPU = torch.device("cpu")
LINKS = {"latest": "step_00000040", "best": "step_00000020"}


def policy_of(inputs: Path, init: str, seed: int) -> tuple[Policy, grpo_files.GrpoConfig]:
    """A policy on `init` whose adapters have an effect, and the settings of its run."""
    settings = grpo_files.config(inputs, inputs / "runs", init=init)
    policy = Policy(settings.policy_source(), CPU)
    with torch.no_grad():
        for parameter in policy.adapters.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return policy, settings


def save_grpo(run: Path, policy: Policy, settings: grpo_files.GrpoConfig, step: int, base: str = "init") -> State:
    """A checkpoint as a GRPO run writes it; the weights that it stands for."""
    checkpoint = run / "checkpoints" / f"step_{step:08d}"
    checkpoint.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(to_plain(settings)))
    Trainer(policy, settings.learner).save(checkpoint, base)
    return {name: value.clone() for name, value in policy.adapters.baked_state().items()}


def name_base(adapters: Path, base: str, **settings: object) -> None:
    """Name the base of a folder of adapters, as PEFT does, and change other `settings`."""
    file = adapters / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base} | settings))


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, tuple[str, State]]:
    """{kind: (what a user types, the weights that it stands for)}; all have the tokenizer of `files/sft`."""
    files = grpo_files.write_inputs(tmp_path_factory.mktemp("files"))
    start = files / "sft"
    first = load_file(start / "model.safetensors")
    (files / "released").mkdir()
    torch.save({"model": first}, files / "released" / "stylevar.pth")
    shutil.copy(start / "vqvae.safetensors", files / "released")

    run = files / "runs" / "grpo"
    policy, settings = policy_of(files, str(start), seed=0)
    early = save_grpo(run, policy, settings, 20)
    merge = run / "merges" / "merge_0001"
    merge.mkdir(parents=True)
    policy.merge(policy.adapters.state())
    merged = {name: value.clone() for name, value in policy.adapters.base_state().items()}
    save_model(merged, policy.model.arch, merge)
    with torch.no_grad():
        for parameter in policy.adapters.parameters():
            parameter.add_(0.05)
    late = save_grpo(run, policy, settings, 40, "merges/merge_0001")
    (run / "model").mkdir()
    save_model(late, policy.model.arch, run / "model")
    for name, step in LINKS.items():
        (run / "checkpoints" / name).symlink_to(step)

    peft = shutil.copytree(run / "checkpoints" / "step_00000020" / "adapter", files / "peft")
    name_base(peft, "../sft/model.safetensors")

    again = files / "runs" / "again"
    policy, settings = policy_of(files, str(run / "checkpoints" / "best"), seed=1)
    twice = save_grpo(again, policy, settings, 8)

    sft = files / "runs" / "sft"
    trained = sft / "checkpoints" / "step_00000002"
    trained.mkdir(parents=True)
    tiny.save(trained, seed=3)
    (trained / "vqvae.safetensors").unlink()
    (sft / "config.yaml").write_text(yaml.safe_dump({"epochs": 1.0, "vae": str(start)}))
    (sft / "checkpoints" / "best").write_text("step_00000002\n")  # as where there are no symbolic links
    shutil.copytree(trained, sft / "model")
    supervised = load_file(trained / "model.safetensors")
    return {
        "file": (str(start / "model.safetensors"), first),
        "released file": (str(files / "released" / "stylevar.pth"), first),
        "folder": (str(start), first),
        "hub": ("owner/name", first),
        "hub file": ("owner/name:model.safetensors", first),
        "grpo run": (str(run), late),
        "grpo model": (str(run / "model"), late),
        "grpo latest": (str(run / "checkpoints" / "latest"), late),
        "grpo best": (str(run / "checkpoints" / "best"), early),
        "grpo step": (str(run / "checkpoints" / "step_00000040"), late),
        "grpo merge": (str(run / "merges" / "merge_0001"), merged),
        "peft": (str(peft), early),
        "grpo on grpo": (str(again / "checkpoints" / "step_00000008"), twice),
        "sft run": (str(sft), supervised),
        "sft best": (str(sft / "checkpoints" / "best"), supervised),
    }


KINDS = (
    *(
        "file",
        "released file",
        "folder",
        "hub",
        "hub file",
        "grpo run",
        "grpo model",
        "grpo latest",
        "grpo best",
        "grpo step",
    ),
    *("grpo merge", "grpo on grpo", "peft", "sft run", "sft best"),
)


@pytest.fixture
def files(sources) -> Path:
    return Path(sources["folder"][0]).parent


@pytest.fixture
def hub(files, monkeypatch) -> None:
    """A repository owner/name that holds what the folder `sft` holds."""

    def download(repo: str, file: str, revision: str | None) -> Path:
        if repo == "owner/name" and (files / "sft" / file).is_file():
            return files / "sft" / file
        raise UserError(f"{repo} has no {file}") from EntryNotFoundError("no such file")

    monkeypatch.setattr("stylevar.hub._download", download)


def by_infer(source: str, vae: str, out: Path) -> State:
    return load_pipeline(ModelSource(init=source, device="cpu")).model.state_dict()


def by_eval(source: str, vae: str, out: Path) -> State:
    stylizer = build_stylizer(Method("method", None, source), EvalConfig(), CPU)
    assert isinstance(stylizer, CheckpointStylizer)
    return stylizer.pipeline.model.state_dict()


def by_export(source: str, vae: str, out: Path) -> State:
    export.main(export.ReleaseConfig(source, out / "out.safetensors", with_vae=True))
    return load_file(out / "out.safetensors")


def by_grpo(source: str, vae: str, out: Path) -> State:
    settings = dataclasses.replace(grpo_files.config(Path(vae).parent, out), init=source)
    grpo.preflight(settings, None)
    return Policy(settings.policy_source(), CPU).adapters.base_state()


def by_sft(source: str, vae: str, out: Path) -> State:
    return starting_model(SftConfig(init=source, vae=vae)).state_dict()


LOADERS = (by_infer, by_eval, by_export, by_grpo, by_sft)
Loader = Callable[[str, str, Path], State]


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_command_makes_the_same_model_of_a_source(sources, files, hub, tmp_path, kind, loader: Loader):
    source, expected = sources[kind]
    state = loader(source, str(files / "sft"), tmp_path)
    assert_same({name: state[name] for name in expected}, expected)


def make_no_models(folder: Path, files: Path) -> None:
    """Folders and files that are no model, in `folder`."""
    (folder / "empty").mkdir()
    (folder / "pictures").mkdir()
    for name in "abcd":
        (folder / "pictures" / f"{name}.png").touch()
    (folder / "notes.txt").write_text("no weights")
    new, going = folder / "new", folder / "going"
    for run in (new, going):
        (run / "checkpoints").mkdir(parents=True)
        shutil.copy(files / "runs" / "grpo" / "config.yaml", run)
    (going / "checkpoints" / "step_00000020").mkdir()
    (going / "checkpoints" / "latest").symlink_to("step_00000020")
    shutil.copytree(files / "runs" / "grpo" / "checkpoints" / "step_00000020" / "adapter", folder / "adapter")


ACCEPTED = r"give a file of weights, a model's folder, a run, one of its checkpoints or merges, or a hub id owner/name"
NO_MODELS = {
    "gone.pth": f"gone.pth does not exist: {ACCEPTED}",
    "empty": rf"empty holds no model.safetensors \(it is empty\): {ACCEPTED}",
    "pictures": rf"pictures holds no model.safetensors \(only a.png, b.png, c.png, ...\): {ACCEPTED}",
    "notes.txt": "notes.txt is not a readable checkpoint",
    "new": "new has neither a finished model nor a checkpoint yet",
    "going": "going has no finished model yet: give .*going/checkpoints/latest$",
    "going/checkpoints": r"checkpoints holds no model.safetensors \(only latest, step_00000020\)",
    "adapter": "adapter holds adapters only, without their base: give the checkpoint folder of their run",
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("name", NO_MODELS)
def test_what_is_no_model_is_one_line_in_every_command(files, tmp_path, name, loader: Loader):
    make_no_models(tmp_path, files)
    (tmp_path / "out").mkdir()
    with refused(NO_MODELS[name]):
        loader(str(tmp_path / name), str(files / "sft"), tmp_path / "out")


def test_a_tokenizer_must_be_known(tmp_path):
    _, vae = tiny.save(tmp_path / "with")
    alone = tmp_path / "alone"
    shutil.copytree(tmp_path / "with", alone)
    (alone / "vqvae.safetensors").unlink()
    with refused("^vae=None: .*alone has no vqvae.safetensors beside it") as error:
        load_pair(str(alone))
    assert error.value.for_command_line().startswith("--vae: ")
    assert load_pair(str(alone), str(vae))[1].arch.image_size == read_architecture(str(alone)).image_size == tiny.SIZE


def test_adapters_without_their_run_are_refused(files, tmp_path):
    shutil.copytree(files / "runs" / "grpo" / "checkpoints" / "step_00000020", tmp_path / "lost")
    with refused("config.yaml of their run is missing", "--base"):
        load_pair(str(tmp_path / "lost"))


def test_adapters_and_their_base_can_be_moved_together(files, sources, tmp_path):
    for name in ("peft", "sft"):
        shutil.copytree(files / name, tmp_path / "moved" / name)
    state = load_pair(str(tmp_path / "moved" / "peft"))[1].state_dict()
    expected = sources["peft"][1]
    assert_same({name: state[name] for name in expected}, expected)


def test_adapters_without_a_config_have_that_of_their_base(files, tmp_path):
    """The weights do not tell the style weights of the scales."""
    for name in ("peft", "sft"):
        shutil.copytree(files / name, tmp_path / name)
    config = json.loads((tmp_path / "sft" / "config.json").read_text())
    config["alphas"] = [0.125 for _ in config["alphas"]]
    (tmp_path / "sft" / "config.json").write_text(json.dumps(config))
    assert read_architecture(str(tmp_path / "peft")).alphas == tuple(config["alphas"])


@pytest.mark.parametrize("base", ["gone.safetensors", "../peft", "../runs/grpo/checkpoints/step_00000020", 3])
def test_adapters_whose_base_is_no_whole_model_are_refused(files, tmp_path, base):
    shutil.copytree(files, tmp_path / "files", symlinks=True)
    peft = tmp_path / "files" / "peft"
    name_base(peft, base)
    with refused("adapters only" if base == 3 else f"the base of {peft}", "give"):
        load_pair(str(peft))


@pytest.mark.parametrize("setting", ["use_rslora", "use_dora", "rank_pattern"])
def test_adapters_of_other_kinds_are_refused(files, tmp_path, setting):
    """Baked as plain LoRA, they would give another model without a word."""
    peft = shutil.copytree(files / "peft", tmp_path / "peft")
    name_base(peft, str(files / "sft"), **{setting: {"proj": 4} if setting == "rank_pattern" else True})
    with refused(f"sets {setting}", "only plain LoRA"):
        load_pair(str(peft))


def test_adapters_on_another_base_are_refused(files, tmp_path):
    run = shutil.copytree(files / "runs" / "grpo", tmp_path / "run", symlinks=True)
    tiny.save(run / "merges" / "merge_0001", seed=7)
    with refused("step_00000040 does not give the weights it was saved from", "--base"):
        load_pair(str(run / "checkpoints" / "latest"), str(files / "sft"))


def test_a_run_keeps_the_checkpoint_that_a_link_names_now(files):
    checkpoints = files / "runs" / "grpo" / "checkpoints"
    assert absolute_source(str(checkpoints / "best")) == str(checkpoints / "step_00000020")
    sft = files / "runs" / "sft" / "checkpoints"
    assert absolute_source(str(sft / "best")) == str(sft / "step_00000002")
    assert absolute_source("owner/name") == "owner/name"

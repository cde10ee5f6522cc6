from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import yaml

from launch.run.run_folder import RunFolder, find_resume
from launch.run.run_lock import LOCK
from stylevar.errors import UserError


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs" / "first", {"seed": 1, "scales": [1, 2]}, keep=2)


def save(run: RunFolder, step: int, text: str = "weights") -> None:
    with run.checkpoint(step) as folder:
        (folder / "adapter").mkdir()
        (folder / "adapter" / "model.bin").write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_layout(run):
    assert names(run.path) == ["checkpoints", "config.yaml", "merges", "tensorboard", "trajectories"]
    assert yaml.safe_load(run.config.read_text()) == {"seed": 1, "scales": [1, 2]}


def test_an_existing_run_is_not_touched(run):
    before = run.config.read_bytes()
    with pytest.raises(UserError, match=r"first already exists.*--resume .*first.*--name"):
        RunFolder.create(run.path, {"seed": 2})
    assert run.config.read_bytes() == before


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "empty").mkdir()
    assert RunFolder.create(tmp_path / "empty", {}).config.exists()


def test_not_writable(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file/run is not writable.*--name"):
        RunFolder.create(tmp_path / "file" / "run", {})


@pytest.mark.parametrize("name", ["[v1] {a,b} *", "-x", ".x.y", "漢" * 85])
def test_a_run_of_any_name(tmp_path, name):
    run = RunFolder.create(tmp_path / name, {})
    save(run, 3)
    found = find_resume(str(run.path), tmp_path)
    assert found is not None
    assert found.step == 3


@pytest.mark.parametrize(("name", "words"), [("x" * 256, "has 256 bytes"), ("\udce9", "is not UTF-8")])
def test_names_that_a_run_cannot_have(tmp_path, name, words):
    with pytest.raises(UserError, match=words):
        RunFolder.create(tmp_path / name, {})
    assert list(tmp_path.iterdir()) == []


def test_no_permission(tmp_path, monkeypatch):
    def forbidden(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    # Root may write anywhere, so the refusal is the file system's word, not a real lock.
    monkeypatch.setattr(Path, "mkdir", forbidden)
    with pytest.raises(UserError, match=r"run is not writable.*Permission denied"):
        RunFolder.create(tmp_path / "run", {})
    assert not (tmp_path / "run").exists()


def test_a_file_is_no_run_folder(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match="not writable"):
        RunFolder.create(tmp_path / "run", {})


def test_opening_a_missing_run(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        RunFolder.open(tmp_path / "none")


def test_keep_of_zero(tmp_path):
    with pytest.raises(UserError, match="at least 1"):
        RunFolder(tmp_path, keep=0)


def test_checkpoint_and_latest(run):
    save(run, 300)
    assert names(run.checkpoints) == ["latest", "step_00000300"]
    assert os.readlink(run.checkpoints / "latest") == "step_00000300"
    assert (run.checkpoints / "latest" / "adapter" / "model.bin").read_text() == "weights"


def test_an_error_while_writing_leaves_nothing(run):
    save(run, 1)

    def fail_half_way():
        with run.checkpoint(2) as folder:
            (folder / "half").write_text("half")
            assert run.steps() == [1]
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        fail_half_way()
    assert names(run.checkpoints) == ["latest", "step_00000001"]
    assert os.readlink(run.checkpoints / "latest") == "step_00000001"


def test_a_checkpoint_that_could_not_be_replaced_stays(run):
    save(run, 1, "old")
    with pytest.raises(KeyboardInterrupt), run.checkpoint(1):
        raise KeyboardInterrupt
    assert (run.checkpoint_path(1) / "adapter" / "model.bin").read_text() == "old"
    save(run, 1, "new")
    assert (run.checkpoint_path(1) / "adapter" / "model.bin").read_text() == "new"
    assert names(run.checkpoints) == ["latest", "step_00000001"]


def test_leftovers_of_a_killed_process(run):
    save(run, 1)
    writing = run.checkpoint(2)
    (writing.__enter__() / "half").write_text("half")  # and never left: as if killed here
    assert RunFolder(run.path).steps() == [1]
    assert len(names(run.checkpoints)) == 3
    RunFolder.open(run.path)
    assert names(run.checkpoints) == ["latest", "step_00000001"]


def test_retention_keeps_the_last_and_the_best(run):
    save(run, 1)
    save(run, 2)
    run.mark_best(1)
    for step in (3, 4, 5):
        save(run, step)
    assert run.steps() == [1, 4, 5]
    run.mark_best(5)
    assert run.steps() == [4, 5]
    assert os.readlink(run.checkpoints / "best") == "step_00000005"


def test_best_has_to_exist(run):
    with pytest.raises(ValueError, match="no checkpoint of step 7"):
        run.mark_best(7)


def test_merges_are_whole_and_never_pruned(run):
    for index in (1, 2, 3, 4):
        with run.merge(index) as folder:
            (folder / "model.safetensors").write_text(str(index))
    with pytest.raises(RuntimeError), run.merge(5):
        raise RuntimeError
    assert names(run.merges) == [f"merge_{index:04d}" for index in (1, 2, 3, 4)]


@pytest.fixture
def without_links(monkeypatch):
    def refused(self, target, target_is_directory=False):
        raise OSError(errno.EPERM, "Operation not permitted", str(self))

    monkeypatch.setattr(Path, "symlink_to", refused)


def test_files_stand_for_links_where_there_are_none(without_links, run):
    """Some network and FUSE file systems refuse to make links; copies of a run may lack them, too."""
    save(run, 1)
    save(run, 2)
    run.mark_best(1)
    for step in (3, 4, 5):
        save(run, step)
    assert run.steps() == [1, 4, 5]
    assert (run.checkpoints / "best").read_text() == "step_00000001\n"
    assert run.linked("best") == run.checkpoint_path(1)
    assert run.linked("latest") == run.checkpoint_path(5)
    assert find_resume(str(run.checkpoints / "best"), Path("unused")).step == 1
    run.rewind(step=4, merges=0)
    assert run.linked("latest") == run.checkpoint_path(4)
    run.rewind(step=0, merges=0)
    assert names(run.checkpoints) == []


def test_another_error_than_missing_links_is_not_hidden(run, monkeypatch):
    def full(self, target, target_is_directory=False):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "symlink_to", full)
    with pytest.raises(OSError, match="No space left"):
        save(run, 1)


def test_rewind_removes_results_of_later_steps(run):
    save(run, 2)
    run.heldout.mkdir()
    for step in (0, 2, 8):
        for ending in ("json", "npz", "png"):
            (run.heldout / f"heldout_{step:08d}.{ending}").write_text("scores")
    with run.final_model(8) as folder:
        (folder / "model.safetensors").write_text("weights")
    run.rewind(step=2, merges=0)
    assert names(run.heldout) == [f"heldout_{step:08d}.{ending}" for step in (0, 2) for ending in ("json", "npz", "png")]
    assert not run.model.exists()


def test_an_extended_run_keeps_its_earlier_model_until_the_new_one(run):
    save(run, 2)
    assert run.finished_at() is None
    with run.final_model(2, {"vae": "v"}):
        pass
    run.rewind(step=2, merges=0)
    assert run.finished_at() == 2
    assert json.loads((run.model / "training.json").read_text()) == {"steps": 2, "vae": "v"}


def changes(run: RunFolder) -> object:
    return yaml.safe_load(run.changes.read_text()) if run.changes.exists() else None


def test_what_a_resume_changes_is_in_force_and_noted(run):
    run.resume_with({"seed": 1, "scales": (1, 2)}, step=2)
    assert changes(run) is None
    run.resume_with({"seed": 1, "scales": (1, 2, 3)}, step=2)
    assert yaml.safe_load(run.config.read_text()) == {"seed": 1, "scales": [1, 2, 3]}
    first = {"step": 2, "changed": {"scales": {"from": [1, 2], "to": [1, 2, 3]}}}
    assert changes(run) == [first]
    run.resume_with({"seed": 5, "scales": (1, 2, 3)}, step=4)
    assert changes(run) == [first, {"step": 4, "changed": {"seed": {"from": 1, "to": 5}}}]


def test_changes_that_never_came_into_force_are_forgotten(run):
    run.resume_with({"seed": 2, "scales": [1, 2]}, step=4)
    run.resume_with({"seed": 3, "scales": [1, 2]}, step=4)
    assert changes(run) == [{"step": 4, "changed": {"seed": {"from": 1, "to": 3}}}]
    run.resume_with({"seed": 1, "scales": [1, 2]}, step=3)
    assert changes(run) is None
    # A process killed between the two writes leaves the history ahead of the config.
    run.changes.write_text(yaml.safe_dump([{"step": 5, "changed": {"seed": {"from": 1, "to": 9}}}]))
    run.resume_with({"seed": 1, "scales": [1, 2]}, step=5)
    assert changes(run) is None


def test_rewind(run):
    for step in (1, 2, 3):
        save(run, step)
    run.mark_best(3)
    for index in (1, 2):
        with run.merge(index):
            pass
    run.rewind(step=2, merges=1)
    assert names(run.checkpoints) == ["latest", "step_00000002"]
    assert os.readlink(run.checkpoints / "latest") == "step_00000002"
    assert names(run.merges) == ["merge_0001"]


def test_resume_from_a_path(run):
    save(run, 1)
    save(run, 2)
    run.mark_best(1)
    point = find_resume(str(run.path), Path("unused"))
    assert (point.run, point.step, point.checkpoint) == (run.path, 2, run.checkpoint_path(2))
    for path in (run.checkpoint_path(1), run.checkpoints / "best"):
        point = find_resume(str(path), Path("unused"))
        assert (point.run, point.step, point.checkpoint) == (run.path, 1, run.checkpoint_path(1))


def test_resume_does_not_depend_on_the_link(run):
    save(run, 1)
    save(run, 2)
    run._link("latest", 1)  # as after a crash between the rename and the link
    assert find_resume(str(run.path), Path("unused")).step == 2


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "adapter/model.bin has 6 bytes instead of 7"),
        (Path.unlink, "adapter/model.bin is missing"),
        (lambda file: (file.parents[1] / "sizes.json").write_text("{"), "sizes.json cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_named(run, capsys, damage, said):
    for step in (1, 2, 3):
        save(run, step)
    newest = run.checkpoint_path(3)
    damage(newest / "adapter" / "model.bin")
    for resume, name in ((str(run.path), None), ("auto", None), ("auto", run.path.name)):
        assert find_resume(resume, run.path.parent, name).checkpoint == run.checkpoint_path(2)
        error = capsys.readouterr().err
        assert error == f"warning: checkpoint {newest} is damaged ({said}): continuing from the one of step 2\n"
    assert find_resume(str(newest), Path("unused")).checkpoint == newest  # nobody asked for another one
    assert capsys.readouterr().err == ""


def test_a_checkpoint_is_not_given_up_if_it_is_the_only_one(run, capsys):
    save(run, 1)
    cut(run.checkpoint_path(1) / "adapter" / "model.bin")
    assert find_resume(str(run.path), Path("unused")).step == 1
    assert capsys.readouterr().err == ""


def test_checkpoints_of_older_versions_have_no_sizes(run):
    for step in (1, 2):
        save(run, step)
    (run.checkpoint_path(2) / "sizes.json").unlink()
    assert find_resume(str(run.path), Path("unused")).step == 2


def test_what_a_killed_start_left_is_removed_by_the_next_one(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".aside-probe").touch()
    RunFolder.create(tmp_path / "run", {})
    assert ".aside-probe" not in names(tmp_path / "run")


def test_resume_from_nothing(run, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        find_resume(str(tmp_path / "none"), tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "file").write_text("a file")
    for name, message in (("pictures", "holds neither"), ("file", "no such folder"), ("x" * 260, "no such folder")):
        with pytest.raises(UserError, match=message):
            find_resume(str(tmp_path / name), tmp_path)


def test_a_run_without_a_checkpoint_begins_again(run):
    point = find_resume(str(run.path), Path("unused"))
    assert (point.run, point.checkpoint, point.step) == (run.path, None, 0)


def test_the_current_folder_can_be_resumed(run, monkeypatch):
    save(run, 1)
    monkeypatch.chdir(run.path)
    assert find_resume(".", Path("unused")).run == run.path


def test_auto_leaves_out_a_folder_that_holds_no_run_yet(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / LOCK).write_text("of a process that was killed")
    assert find_resume("auto", tmp_path, "new") is None
    RunFolder.create(tmp_path / "new", {})
    (tmp_path / "file").write_text("a file")
    assert find_resume("auto", tmp_path / "file") is None


def test_auto_without_a_name_takes_the_newest(run):
    runs = run.path.parent
    assert find_resume("auto", runs / "missing") is None
    assert find_resume("auto", runs) is None
    save(run, 9)
    second = RunFolder.create(runs / "second", {})
    save(second, 3)
    os.utime(run.checkpoint_path(9), (1e9, 1e9))
    assert find_resume("auto", runs).run == second.path


def test_auto_with_a_name(run):
    runs = run.path.parent
    assert find_resume("auto", runs, "new") is None
    # Cut short before its first checkpoint: begins again at step 0, in its own folder.
    point = find_resume("auto", runs, "first")
    assert (point.run, point.checkpoint, point.step) == (run.path, None, 0)
    save(run, 4)
    assert find_resume("auto", runs, "first").step == 4

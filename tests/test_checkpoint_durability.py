"""Checkpoints beside other processes and after kills and power cuts: none is lost, and none is read in half."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.checkpoints import SEAL, STEPS, kernel, meta_of, save, save_steps

import transformer_jax as tj
from train.resume import last_checkpoint
from transformer_jax.checkpoints import folder as checkpoint_folder
from transformer_jax.checkpoints import lock as checkpoint_lock
from transformer_jax.checkpoints import seal as checkpoint_seal
from transformer_jax.checkpoints.store import CheckpointError, Checkpoints

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_steps(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def folder(saved, tmp_path):
    """The folder of checkpoints of a run with steps 5, 10 (the best) and 15."""
    return shutil.copytree(saved, tmp_path / "run") / "checkpoints"


# Deleted while it is read


def test_a_checkpoint_that_is_read_is_not_deleted(folder):
    checkpoints = Checkpoints(folder.parent, keep=1)

    def read(steps):
        save(checkpoints, 20, -1.0)
        assert checkpoints.steps() == [15, 20]
        return kernel(Checkpoints(folder.parent), *steps)

    assert Checkpoints(folder.parent).read(read) == [15.0] * 3
    save(checkpoints, 25, -0.5)
    assert checkpoints.steps() == [25]


@pytest.mark.parametrize("has_locks", [True, False])
@pytest.mark.parametrize("which", ["latest", "best"])
def test_one_that_was_deleted_meanwhile_is_not_damage_and_another_is_read(
    folder, capsys, monkeypatch, which, has_locks
):
    checkpoints = Checkpoints(folder.parent, keep=1)
    reader = Checkpoints(folder.parent)
    newest = iter((20, 25, 30))
    find_problem = reader.damage
    if not has_locks:
        monkeypatch.setattr(fcntl, "flock", refuse_to_lock)

    def damage_after_a_save(step):
        if (new := next(newest, None)) is not None:
            save(checkpoints, new, -1 / new)
        return find_problem(step)

    monkeypatch.setattr(reader, "damage", damage_after_a_save)
    step = reader.find(which)
    assert step == (30 if not has_locks else 15 if which == "latest" else 10)
    assert capsys.readouterr().err == ""


def refuse_to_lock(fd, operation):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_a_deletion_between_the_list_and_the_lock_is_no_damage(folder, capsys, monkeypatch):
    listed = Checkpoints.steps
    run = Checkpoints(folder.parent, keep=1)

    def steps_before_a_deletion(self):
        steps = listed(self)
        if steps[-1] == 15 and self is not run:
            save(run, 20, -1.0)
        return steps

    monkeypatch.setattr(Checkpoints, "steps", steps_before_a_deletion)
    assert Checkpoints(folder.parent).find() == 20
    assert capsys.readouterr().err == ""


def test_where_every_checkpoint_is_deleted_before_it_is_read_the_reader_gives_up(folder, monkeypatch):
    def read(steps):
        shutil.rmtree(folder / str(steps[0]))
        shutil.copytree(folder.parent / "copy", folder / str(steps[0]))
        raise CheckpointError("checkpoint 15 cannot be read")

    monkeypatch.setattr(checkpoint_folder, "_MOST_ATTEMPTS", 5)
    shutil.copytree(folder / "15", folder.parent / "copy")
    with pytest.raises(CheckpointError, match="each checkpoint was deleted by a training run before it could be read"):
        Checkpoints(folder.parent).read(read)


def test_an_error_of_the_reader_is_not_tried_again(folder):
    calls = []

    def read(steps):
        calls.append(steps)
        raise CheckpointError("no")

    with pytest.raises(CheckpointError, match="^no$"):
        Checkpoints(folder.parent).read(read, number=2)
    assert calls == [[15, 10]]


# Kills


def test_a_kill_while_deleting_leaves_nothing_after_the_next_start(folder, monkeypatch):
    def kill(path, *args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(checkpoint_lock, "_remove", kill)
        with pytest.raises(KeyboardInterrupt):
            save(Checkpoints(folder.parent, keep=1), 20)
    checkpoints = Checkpoints(folder.parent)
    assert (folder / "5.deleting").is_dir() and checkpoints.steps() == [10, 15, 20]
    (folder / "5.deleting" / SEAL).unlink()
    assert checkpoints.find() == 20
    checkpoints.clean_up()
    assert sorted(os.listdir(folder)) == ["10", "15", "20"]


def test_only_leftovers_of_ours_are_cleaned_up(folder):
    theirs = ["notes", "5.damaged", "5.deleting.bak", "x.deleting", "a.orbax-checkpoint-tmp", "05.deleting", "deleting"]
    for name in [*theirs, "5.deleting", "7.deleting", "17.orbax-checkpoint-tmp", "0.deleting"]:
        (folder / name / "params").mkdir(parents=True)
    (folder.parent / "mine").mkdir()
    (folder / "9.deleting").symlink_to(folder.parent / "mine")
    (folder / "11.deleting").write_text("a file")
    Checkpoints(folder.parent).clean_up()
    assert sorted(os.listdir(folder)) == sorted([*theirs, "11.deleting", "5", "10", "15"])
    assert (folder.parent / "mine").is_dir()


def test_what_cannot_be_deleted_is_named_and_stops_nothing(folder, capsys, monkeypatch):
    def refuse(path, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (folder / "7.deleting").mkdir()
    monkeypatch.setattr(checkpoint_lock, "_remove", refuse)
    checkpoints = Checkpoints(folder.parent, keep=1)
    save(checkpoints, 20, -1.0)
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 4 and all("Permission denied" in warning for warning in warnings)
    assert warnings[0].startswith(f"warning: {folder}/7.deleting: is left from a killed run, and cannot be deleted")
    assert warnings[1].startswith("warning: checkpoint 5 is no longer needed, and cannot be deleted")
    assert checkpoints.find() == 20


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_step_that_is_saved_again_is_there_after_a_kill_at_any_moment(folder, monkeypatch, renames):
    rename = os.rename
    done = []

    def rename_or_be_killed(source, target):
        if os.fspath(target).endswith(("15", "15.replaced")):
            if len(done) == renames:
                raise OSError("killed")
            done.append(target)
        rename(source, target)

    checkpoints = Checkpoints(folder.parent)
    with monkeypatch.context() as killed:
        killed.setattr(os, "rename", rename_or_be_killed)
        checkpoints.save({"kernel": np.full(3, 15.5, np.float32)}, meta_of(15, -1.0))
        if renames < 2:
            with pytest.raises(tj.RunError):
                checkpoints.wait()
        checkpoints.wait()
    Checkpoints(folder.parent).clean_up()
    assert sorted(os.listdir(folder)) == ["10", "15", "5"]
    assert Checkpoints(folder.parent).find() == 15
    assert kernel(Checkpoints(folder.parent), 15) == [15.5 if renames == 2 else 15.0] * 3


def test_nothing_is_saved_as_a_new_run_where_a_run_is_making_its_first_checkpoint(tmp_path):
    (tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp").mkdir(parents=True)
    assert not Checkpoints(tmp_path).is_empty()
    assert Checkpoints(tmp_path).steps() == []
    checkpoints = Checkpoints(tmp_path)
    checkpoints.clean_up()
    assert last_checkpoint(checkpoints) is None


# Power cuts


def test_files_and_folders_reach_the_disk_before_the_rename_and_the_rename_before_a_deletion(folder, monkeypatch):
    events = []

    def record(module, name, describe):
        original = getattr(module, name)

        def call(*args, **kwargs):
            result = original(*args, **kwargs)
            events.append((name, *describe(*args)))
            return result

        monkeypatch.setattr(module, name, call)

    before = set(folder.rglob("*"))
    record(os, "fsync", lambda fd: (os.readlink(f"/proc/self/fd/{fd}"),))
    record(os, "rename", lambda source, target: (str(source), str(target)))
    record(shutil, "rmtree", lambda path: (str(path),))
    save(Checkpoints(folder.parent, keep=1), 20, -1.0)
    temporary = f"{folder}/20.orbax-checkpoint-tmp"
    committed = events.index(("rename", temporary, f"{folder}/20"))
    flushed = [event[1] for event in events[:committed] if event[0] == "fsync"]
    new = {path for path in folder.rglob("*") if path not in before}
    expected = {str(path).replace(f"{folder}/20", temporary) for path in new}
    assert len(expected) > 10 and expected <= set(flushed)
    # Data before their folders, all before the seal, the seal before the folder that holds it.
    last = {path: i for i, path in enumerate(flushed)}
    for path in expected - {temporary}:
        assert last[path] < last[os.path.dirname(path)]
    assert last[f"{temporary}/{SEAL}"] == max(last[path] for path in expected - {temporary})
    # The rename, then the folder that records it, then deletions; each begins with a rename.
    assert events[committed + 1] == ("fsync", str(folder))
    later = events[committed + 2 :]
    for step in STEPS:
        name = f"{folder}/{step}"
        assert later.index(("rename", name, f"{name}.deleting")) < later.index(("rmtree", f"{name}.deleting"))
    assert [event for event in events[:committed] if event[0] == "rmtree" and event[1] != temporary] == []


def test_the_folder_of_a_first_checkpoint_is_flushed_up_to_the_root(tmp_path, monkeypatch):
    flushed = []
    flush = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (flushed.append(os.readlink(f"/proc/self/fd/{fd}")), flush(fd)))
    save(Checkpoints(tmp_path / "a" / "b"), 2)
    for path in (tmp_path / "a" / "b" / "checkpoints", tmp_path / "a" / "b", tmp_path / "a", tmp_path):
        assert str(path) in flushed


def test_a_file_that_cannot_be_flushed_fails_the_save(folder, monkeypatch):
    def fail(fd):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(checkpoint_seal.os, "fsync", fail)
    with pytest.raises(tj.RunError, match="checkpoint 20 in .* could not be saved .Input/output error"):
        save(Checkpoints(folder.parent, keep=1), 20)
    assert Checkpoints(folder.parent).steps() == list(STEPS)


# A process that trains


def test_loads_beside_a_process_that_saves_and_deletes_all_succeed(tmp_path, capsys):
    lines = (
        "import sys",
        "sys.path.insert(0, 'tests')",
        "import jax",
        "from helpers.checkpoints import MODEL, meta_of",
        "from transformer_jax.checkpoints.store import Checkpoints",
        "from transformer_jax.models import init_params",
        "checkpoints = Checkpoints(sys.argv[1], keep=1)",
        "params = init_params(MODEL, jax.random.key(0))",
        "for step in range(2, 100_000, 2):",
        "    checkpoints.save(params, meta_of(step))",
    )
    with subprocess.Popen([sys.executable, "-c", "\n".join(lines), tmp_path], cwd=ROOT) as process:
        while not Checkpoints(tmp_path).steps():
            assert process.poll() is None
            time.sleep(0.01)
        steps = [tj.load(tmp_path).step for _ in range(12)]
        assert process.poll() is None
        process.kill()
    assert steps == sorted(steps) and steps[-1] > steps[0]
    assert capsys.readouterr().err == ""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.clean_up()
    assert len(os.listdir(checkpoints.folder)) in (1, 2) and tj.load(tmp_path).step >= steps[-1]

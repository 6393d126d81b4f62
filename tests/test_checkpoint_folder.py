"""Folders of checkpoints that are not sound: copies and links under other numbers, unreadable files, hollow ones."""

import errno
import hashlib
import json
import os
import shutil

import pytest
from helpers.checkpoints import SEAL, STEPS, kernel, save, save_steps

from train.resume import last_checkpoint
from transformer_jax.checkpoints.store import CheckpointError, Checkpoints


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_steps(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def folder(saved, tmp_path):
    """The folder of checkpoints of a run with steps 5, 10 (the best) and 15."""
    return shutil.copytree(saved, tmp_path / "run") / "checkpoints"


def reseal(step_folder, digests):
    (step_folder / SEAL).write_text(json.dumps(digests))


def digest(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


# Another number


def copy(source, target):
    shutil.copytree(source, target)


def link(source, target):
    target.symlink_to(source, target_is_directory=True)


OTHER_STEP = {"copy": copy, "link": link, "renamed": lambda source, target: source.rename(target)}


@pytest.mark.parametrize("make", OTHER_STEP.values(), ids=OTHER_STEP)
def test_a_checkpoint_under_another_number_is_skipped_and_both_are_named(folder, capsys, make):
    make(folder / "10", folder / "999")
    assert Checkpoints(folder.parent).find() == 15
    warning = f"checkpoint 999 is misnamed and skipped: {folder}/999/meta: is that of step 10, not 999"
    assert capsys.readouterr().err == f"warning: {warning}\n"
    assert Checkpoints(folder.parent).find("best") == (10 if (folder / "10").exists() else 15)
    with pytest.raises(CheckpointError, match="checkpoint 999 is misnamed: .*999/meta: is that of step 10, not 999"):
        Checkpoints(folder.parent).find(999)


@pytest.mark.parametrize("make", OTHER_STEP.values(), ids=OTHER_STEP)
def test_a_later_save_of_that_number_works_and_keeps_the_other_folder(folder, make):
    make(folder / "10", folder / "999")
    save(Checkpoints(folder.parent), 999)
    assert Checkpoints(folder.parent).find() == 999
    assert kernel(Checkpoints(folder.parent), 999) == [999.0] * 3
    assert json.loads((folder / "999.damaged" / "meta" / "metadata").read_text())["step"] == 10


def test_a_copy_takes_the_place_of_no_checkpoint_that_is_kept(folder):
    for step in (7, 8, 9):
        copy(folder / "15", folder / str(step))
    checkpoints = Checkpoints(folder.parent, keep=2)
    save(checkpoints, 20, -3.0)
    assert checkpoints.steps() == [7, 8, 9, 10, 15, 20]  # 10 is the best
    assert checkpoints.find("best") == 10


@pytest.mark.parametrize("name", ["015", "+15", "15 ", " 15", "1_5", "١٥", "１５", "00"])
def test_a_folder_whose_name_only_resembles_a_step_is_skipped_by_name(folder, capsys, name):
    copy(folder / "15", folder / name)
    checkpoints = Checkpoints(folder.parent)
    assert checkpoints.steps() == list(STEPS) and checkpoints.find() == 15
    assert f"{folder / name} is skipped" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="does not exist. Choose latest, best or one of 5, 10, 15"):
        checkpoints.find(name)


def test_a_run_with_only_such_a_name_is_not_started_again(folder, capsys):
    for step in STEPS[:-1]:
        shutil.rmtree(folder / str(step))
    (folder / "15").rename(folder / "0015")
    with pytest.raises(CheckpointError, match="no checkpoints here"):
        last_checkpoint(Checkpoints(folder.parent))
    assert f"{folder}/0015 is skipped: step 15 must be named so" in capsys.readouterr().err


def test_a_link_to_a_folder_that_is_gone_is_damage(folder, capsys):
    shutil.move(folder / "15", folder.parent / "elsewhere")
    link(folder.parent / "elsewhere", folder / "15")
    assert Checkpoints(folder.parent).find() == 15  # the same step: moved to another disk
    shutil.rmtree(folder.parent / "elsewhere")
    assert Checkpoints(folder.parent).find() == 10
    assert "checkpoint 15 is damaged and skipped: " in capsys.readouterr().err
    save(Checkpoints(folder.parent), 15)
    assert Checkpoints(folder.parent).find() == 15 and not (folder / "15").is_symlink()


# Unreadable and hollow


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("name", [SEAL, "meta/metadata", "params/_METADATA"])
def test_an_unreadable_file_is_damage_that_names_file_and_reason(folder, capsys, monkeypatch, name, code):
    unreadable = folder / "15" / name
    make_unreadable(monkeypatch, unreadable, code)
    checkpoints = Checkpoints(folder.parent)
    assert checkpoints.find() == 10
    warning = capsys.readouterr().err
    assert warning.startswith("warning: checkpoint 15 is damaged and skipped: ") and warning.count("\n") == 1
    assert str(unreadable) in warning and os.strerror(code) in warning
    with pytest.raises(CheckpointError, match=os.strerror(code)):
        checkpoints.find(15)
    save(checkpoints, 20)
    assert unreadable.exists() and checkpoints.steps() == [*STEPS, 20]


def make_unreadable(monkeypatch, file, code):
    opened = open

    def refuse(path, *args, **kwargs):
        if str(path) == str(file):
            raise OSError(code, os.strerror(code), str(path))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr("io.open", refuse)  # of pathlib


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
@pytest.mark.parametrize("name", ["", SEAL, "params", "params/_METADATA"])
def test_a_missing_permission_is_damage_that_names_its_reason(folder, capsys, name):
    (folder / "15" / name).chmod(0)
    assert Checkpoints(folder.parent).find() == 10
    assert "Permission denied" in capsys.readouterr().err
    (folder / "15" / name).chmod(0o700)


@pytest.mark.parametrize("name", [SEAL, "meta/metadata", "params/_METADATA", "meta", "params"])
def test_a_folder_in_the_place_of_a_file_and_a_file_in_that_of_a_folder_are_damage(folder, capsys, name):
    path = folder / "15" / name
    if path.is_dir():
        shutil.rmtree(path)
        path.write_text("a file")
    else:
        path.unlink()
        path.mkdir()
    assert Checkpoints(folder.parent).find() == 10
    assert "a directory" in capsys.readouterr().err.lower()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
def test_a_process_with_too_many_open_files_takes_no_older_checkpoint(folder, monkeypatch, code):
    file = folder / "15" / "params" / "_METADATA"
    make_unreadable(monkeypatch, file, code)
    with pytest.raises(OSError, match=f"{os.strerror(code)}: '{file}'"):
        Checkpoints(folder.parent).find()


def test_a_hollow_folder_with_a_seal_is_skipped_with_its_reason(folder, capsys):
    notes = folder / "999" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("not a checkpoint")
    empty = folder / "999" / "meta" / "metadata"
    empty.parent.mkdir()
    empty.write_text("")
    whole = json.loads((folder / "15" / SEAL).read_text())
    hollow = {"meta/metadata": digest(empty), "notes.txt": digest(notes)}
    reasons = {
        "empty": {},
        "does not list meta/metadata": {"notes.txt": digest(notes)},
        "does not list params/_METADATA": hollow,
        "_CHECKPOINT_METADATA: missing": whole,
        "_METADATA: missing": hollow | {"params/_METADATA": digest(notes)},
        "names a file outside of the checkpoint": {"../15/sha256.json": "", **whole},
        "names a file outside": {"/etc/hostname": "", **whole},
    }
    for reason, digests in reasons.items():
        reseal(folder / "999", digests)
        assert Checkpoints(folder.parent).find() == 15
        warning = capsys.readouterr().err
        assert warning.startswith(f"warning: checkpoint 999 is damaged and skipped: {folder}/999/")
        assert reason in warning and warning.count("\n") == 1
    (folder / "999" / "params").mkdir()
    (folder / "999" / "params" / "_METADATA").write_text("")
    reseal(folder / "999", hollow | {"params/_METADATA": digest(empty)})
    assert Checkpoints(folder.parent).find() == 15
    assert f"{folder}/999/meta/metadata: is not JSON" in capsys.readouterr().err


def test_a_folder_of_checkpoints_that_cannot_be_listed_is_named(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(CheckpointError, match=f"^{folder}: cannot be listed .Permission denied"):
        last_checkpoint(Checkpoints(folder.parent))

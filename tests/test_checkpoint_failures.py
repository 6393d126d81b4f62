"""Writes that fail for a reason of the system: it is given in one line, with the path, and nothing older is lost."""

import contextlib
import errno
import os
import shutil
import subprocess

import numpy as np
import pytest
from helpers.checkpoints import meta_of, save

import transformer_jax as tj
from train.metrics import MetricsLog, read_metrics
from transformer_jax.checkpoints import store
from transformer_jax.checkpoints.store import Checkpoints
from transformer_jax.files import write_text


@pytest.mark.parametrize("is_deleted", [False, True])
@pytest.mark.parametrize("is_saving", [False, True])
def test_a_run_directory_that_was_moved_or_deleted_is_not_made_again(tmp_path, is_saving, is_deleted):
    run_dir = tmp_path / "run"
    moved = tmp_path / "moved"
    checkpoints = Checkpoints(run_dir)
    save(checkpoints, 2)
    with pytest.raises(tj.RunError) as error:
        if is_saving:
            checkpoints.save({"kernel": np.zeros(2_000_003)}, meta_of(4))
        run_dir.rename(moved)
        if is_deleted:
            shutil.rmtree(moved, ignore_errors=True)
        if not is_saving:
            save(checkpoints, 4)
        checkpoints.wait()
    assert f"{run_dir} was moved or deleted meanwhile" in str(error.value) and "disk" not in str(error.value)
    assert is_saving or not run_dir.exists()
    assert is_deleted or Checkpoints(moved).find() in (2, 4)


def test_a_run_directory_that_was_moved_before_its_first_checkpoint_is_not_made_again(tmp_path):
    (tmp_path / "run").mkdir()
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.clean_up()
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(tj.RunError, match="run was moved or deleted meanwhile"):
        save(checkpoints, 2)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("may not mount")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_reported_with_the_folder_and_keeps_the_checkpoint_before(small_disk):
    checkpoints = Checkpoints(small_disk / "run", keep=1)
    save(checkpoints, 2)
    noise = np.random.default_rng(0).normal(size=300_007)
    reason = f"checkpoint 4 in {small_disk}/run/checkpoints could not be saved .No space left on device"
    with pytest.raises(tj.RunError, match=f"{reason}.*Checkpoints there: 2[.]$"):
        checkpoints.save({"kernel": noise}, meta_of(4))
        checkpoints.wait()
    assert Checkpoints(small_disk / "run").find() == 2


def test_a_file_system_that_cannot_be_written_is_reported_as_such(small_disk):
    save(Checkpoints(small_disk / "run"), 2)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(tj.RunError, match=f"checkpoint 4 in {small_disk}/.*could not be saved .Read-only file system"):
        save(Checkpoints(small_disk / "run"), 4)
    assert Checkpoints(small_disk / "run").find() == 2


@pytest.mark.parametrize("code", [errno.EDQUOT, errno.EMFILE, errno.ENOSPC, errno.EROFS])
def test_the_reason_of_a_failed_save_is_that_of_the_system(tmp_path, monkeypatch, code):
    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(store, "make_folder", refuse)
    with pytest.raises(tj.RunError) as error:
        save(Checkpoints(tmp_path / "run"), 2)
    folder = tmp_path / "run" / "checkpoints"
    assert str(error.value) == (
        f"checkpoint 2 in {folder} could not be saved ({os.strerror(code)}). Checkpoints there: none."
    )


@pytest.mark.parametrize("file", ["metrics.jsonl", "tensorboard"])
def test_a_log_that_no_longer_fits_on_the_disk_ends_the_run_and_names_its_file(small_disk, file):
    log = MetricsLog(small_disk, 0, 10**6, file == "tensorboard")
    log.val(0, {"loss": 1.5})
    with pytest.raises(OSError, match="No space"):
        (small_disk / "others").write_bytes(bytes(2_000_000))
    with pytest.raises(tj.RunError, match=f"^{small_disk}/{file}: cannot be written .No space left on device.[.]$"):
        for step in range(1, 1000):  # the last page of each file has room for some
            log.val(step, {"loss": 1.5})
    with contextlib.suppress(tj.RunError):
        log.close()
    (small_disk / "others").unlink()
    assert read_metrics(small_disk / "metrics.jsonl")[0]["step"] == 0


def test_a_file_that_is_replaced_on_a_full_disk_stays_as_it_was(small_disk):
    path = small_disk / "config.json"
    write_text(path, "old")
    with pytest.raises(tj.RunError, match=f"^{path}: cannot be written .No space left on device.[.]$"):
        write_text(path, "new" * 1_000_000)
    assert path.read_text() == "old" and os.listdir(small_disk) == ["config.json"]


def test_a_replaced_file_and_its_name_reach_the_disk_in_that_order(tmp_path, monkeypatch):
    events = []
    flush, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), flush(fd)))
    monkeypatch.setattr(os, "replace", lambda *names: (events.append("replace"), replace(*names)))
    write_text(tmp_path / "config.json", "new")
    assert events == [f"{tmp_path}/config.json.tmp", "replace", str(tmp_path)]

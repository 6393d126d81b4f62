"""Checkpoints: saving, finding, damage, and saves that fail."""

import contextlib
import functools
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.checkpoints import meta_of

from transformer_jax.checkpoints.store import CheckpointError, Checkpoints, abstract
from transformer_jax.errors import RunError, UserError

STEPS = (5, 10, 15)
SEAL = "sha256.json"


def arrays(step):
    """Parameters and the rest of a state, different at each step."""
    rng = np.random.default_rng(step)
    params = {
        "kernel": jnp.asarray(rng.normal(size=(3, 5, 7)), jnp.float32),
        "norm": {"scale": jnp.asarray(rng.normal(size=11), jnp.float32)},
    }
    return params, {"step": jnp.int32(step), "mean": jax.tree.map(lambda x: 2 * x, params)}


def save(checkpoints, step, val_loss=None):
    params, state = arrays(step)
    checkpoints.save(params, meta_of(step, None if val_loss is None else -val_loss), state)


def restore(checkpoints, step):
    params, state = (abstract(tree) for tree in arrays(step))
    restored = checkpoints.restore(step, params=params, state=state)
    return restored["params"], restored["state"]


def assert_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def assert_is(checkpoints, step):
    """The restored arrays equal the saved ones to the bit."""
    assert_equal(restore(checkpoints, step), arrays(step))
    assert checkpoints.meta(step).step == step


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(run_dir)
    for step, val_loss in zip(STEPS, (2.5, 1.5, 2.0), strict=True):
        save(checkpoints, step, val_loss)
    checkpoints.wait()
    return run_dir


@pytest.fixture
def run_dir(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def flip_a_bit(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file):
    file.write_bytes(b"")


def delete(file):
    file.unlink()


DAMAGES = (flip_a_bit, truncate, empty, delete)


# Save and restore


def test_restored_arrays_equal_the_saved_ones(saved):
    for step in STEPS:
        assert_is(Checkpoints(saved), step)


def test_parameters_are_restored_without_the_state(saved):
    params, _ = arrays(10)
    assert_equal(Checkpoints(saved).restore(10, params=abstract(params))["params"], params)


def test_a_checkpoint_needs_no_state(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    params, _ = arrays(3)
    checkpoints.save(params, meta_of(3))
    checkpoints.wait()
    assert checkpoints.find() == 3
    assert_equal(checkpoints.restore(3, params=abstract(params))["params"], params)


def test_arrays_are_copied_before_save_returns(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    overwrite = jax.jit(lambda x: x - 7, donate_argnums=0)
    on_device, on_host = jnp.arange(1_000_003.0), np.arange(500_009.0)
    template = abstract({"a": on_device, "b": on_host})
    checkpoints.save({"a": on_device, "b": on_host}, meta_of(3))
    overwrite(on_device).block_until_ready()  # in the same memory, if nothing else references it
    on_host[:] = -1
    checkpoints.wait()
    restored = checkpoints.restore(3, params=template)["params"]
    assert_equal(restored, {"a": np.arange(1_000_003, dtype=np.float32), "b": np.arange(500_009.0)})


def test_arrays_that_do_not_fit_the_template_are_refused(saved):
    params, _ = arrays(5)
    with pytest.raises(CheckpointError, match="checkpoint .*5 cannot be read"):
        Checkpoints(saved).restore(5, params=abstract({"kernel": params["kernel"]}))


# Which checkpoints are kept, and found


@pytest.mark.parametrize("best", [1, 3, 5])
def test_the_newest_and_the_best_are_kept(tmp_path, best):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in range(1, 6):
        save(checkpoints, step, val_loss=None if step == 2 else abs(step - best) + 1.0)
    checkpoints.wait()
    assert checkpoints.steps() == sorted({best, 4, 5})
    assert checkpoints.find("latest") == 5
    assert checkpoints.find("best") == best
    assert_is(checkpoints, best)


def test_a_checkpoint_is_found_by_name_or_step(saved):
    checkpoints = Checkpoints(saved)
    assert [checkpoints.find(which) for which in ("latest", "best", 5, "5")] == [15, 10, 5, 5]


@pytest.mark.parametrize("which", [7, "7", "newest", "-5", "²", ""])
def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(saved, which):
    with pytest.raises(CheckpointError, match="5, 10, 15"):
        Checkpoints(saved).find(which)


@pytest.mark.parametrize("which", ["latest", "best", 5])
def test_a_directory_that_is_no_run_is_refused(tmp_path, which):
    (tmp_path / "notes.txt").write_text("no run")
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CheckpointError, match="no checkpoints here"):
            Checkpoints(folder).find(which)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_best_needs_a_validation_score(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 3)
    checkpoints.wait()
    with pytest.raises(CheckpointError, match="no checkpoint has a validation score"):
        checkpoints.find("best")


# Damage


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_named_and_skipped_or_changes_nothing(run_dir, capsys, damage):
    newest = run_dir / "checkpoints" / str(STEPS[-1])
    copy = shutil.copytree(newest, run_dir / "copy")
    files = sorted(file.relative_to(newest) for file in newest.rglob("*") if file.is_file())
    assert len(files) > 10
    num_skipped = 0
    for file in files:
        damage(newest / file)
        if (copy / file).read_bytes() != (b"" if not (newest / file).exists() else (newest / file).read_bytes()):
            checkpoints = Checkpoints(run_dir)
            step = checkpoints.find("latest")
            warning = capsys.readouterr().err
            if step == STEPS[-1]:
                assert warning == ""
                with contextlib.suppress(CheckpointError):  # either an error, or the saved arrays
                    assert_is(checkpoints, step)
            else:
                assert step == STEPS[-2] and warning.startswith("warning: checkpoint 15 is damaged and skipped: ")
                assert str(newest / file) in warning or file.name == SEAL
                num_skipped += 1
        shutil.copy(copy / file, newest / file)
    assert num_skipped == len(files)
    assert Checkpoints(run_dir).find() == STEPS[-1]
    assert capsys.readouterr().err == ""


def test_an_older_checkpoint_is_used_with_its_own_arrays(run_dir):
    for file in (run_dir / "checkpoints" / "15" / "params").rglob("*"):
        if file.is_file():
            flip_a_bit(file)
    checkpoints = Checkpoints(run_dir)
    assert_is(checkpoints, checkpoints.find())


def test_an_empty_folder_among_the_steps_is_skipped_with_a_warning(run_dir, capsys):
    (run_dir / "checkpoints" / "999").mkdir()
    (run_dir / "checkpoints" / "999.damaged").mkdir()
    (run_dir / "checkpoints" / "notes").mkdir()
    (run_dir / "checkpoints" / "1000").write_text("a file")
    assert Checkpoints(run_dir).find() == 15
    warning = capsys.readouterr().err
    assert "checkpoint 999 is damaged" in warning and warning.count("\n") == 1


def test_best_skips_damage(run_dir, capsys):
    flip_a_bit(run_dir / "checkpoints" / "10" / "params" / "_METADATA")
    assert Checkpoints(run_dir).find("best") == 15
    assert "checkpoint 10 is damaged" in capsys.readouterr().err


def test_best_skips_a_checkpoint_whose_score_cannot_be_read(run_dir):
    empty(run_dir / "checkpoints" / "10" / "meta" / "metadata")
    assert Checkpoints(run_dir).find("best") == 15


def test_a_requested_checkpoint_that_is_damaged_is_refused(run_dir):
    flip_a_bit(run_dir / "checkpoints" / "10" / "params" / "_METADATA")
    with pytest.raises(CheckpointError, match="checkpoint 10 is damaged: .*params/_METADATA.*5, 10, 15"):
        Checkpoints(run_dir).find(10)


def test_where_all_are_damaged_none_is_found(run_dir, capsys):
    for step in STEPS:
        flip_a_bit(run_dir / "checkpoints" / str(step) / "params" / "_METADATA")
    for which in ("latest", "best"):
        with pytest.raises(CheckpointError, match="none of its checkpoints .5, 10, 15. is undamaged"):
            Checkpoints(run_dir).find(which)
        assert capsys.readouterr().err.count("is damaged") == 3
    assert Checkpoints(run_dir).steps() == list(STEPS)


@pytest.mark.parametrize("seal", ["{}", "[]", "3", "null", '{"params": 3}', "[" * 100_000, "\udcff"])
def test_a_malformed_seal_is_damage(run_dir, seal):
    (run_dir / "checkpoints" / "15" / SEAL).write_text(seal, errors="surrogateescape")
    assert Checkpoints(run_dir).find() == 10


def test_a_new_checkpoint_is_kept_although_a_damaged_one_has_a_later_step(run_dir):
    for step in (10, 15):
        flip_a_bit(run_dir / "checkpoints" / str(step) / "params" / "_METADATA")
    checkpoints = Checkpoints(run_dir, keep=1)
    assert checkpoints.find() == 5
    save(checkpoints, 7)
    checkpoints.wait()
    assert Checkpoints(run_dir).find() == 7


# Failed saves


def test_the_rest_of_a_killed_save_is_removed_by_the_next_one(run_dir):
    leftover = run_dir / "checkpoints" / "17.orbax-checkpoint-tmp"
    (leftover / "params").mkdir(parents=True)
    (leftover / "params" / "d").write_text("half of it")
    checkpoints = Checkpoints(run_dir)
    assert checkpoints.find() == 15
    save(checkpoints, 20)
    checkpoints.wait()
    assert not list((run_dir / "checkpoints").glob("*tmp*"))
    assert_is(checkpoints, 20)


def test_saving_over_a_damaged_step_keeps_the_damaged_files_aside(run_dir):
    folder = run_dir / "checkpoints"
    for i, aside in enumerate(["15.damaged", "15.damaged1"]):
        flip_a_bit(folder / "15" / "params" / "_METADATA")
        damaged = (folder / "15" / "params" / "_METADATA").read_bytes()
        checkpoints = Checkpoints(run_dir)
        assert checkpoints.find() == 10
        save(checkpoints, 15)
        checkpoints.wait()
        assert checkpoints.find() == 15 and checkpoints.steps() == list(STEPS), i
        assert_is(checkpoints, 15)
        assert (folder / aside / "params" / "_METADATA").read_bytes() == damaged


def test_a_save_that_cannot_begin_names_the_step(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(RunError, match="checkpoint 20 in .*could not be saved"):
        save(Checkpoints(tmp_path), 20)


@contextlib.contextmanager
def largest_file(num_bytes):
    """Make writing fail beyond this many bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_save_that_fails_midway_names_the_step_and_keeps_the_older_ones(run_dir):
    checkpoints = Checkpoints(run_dir)
    noise = {"kernel": np.random.default_rng(0).normal(size=300_007)}
    fail = functools.partial(pytest.raises, RunError, match="checkpoint 20 in .*could not be saved.*5, 10, 15")
    with largest_file(100_000), fail():
        checkpoints.save(noise, meta_of(20))
        checkpoints.wait()
    assert Checkpoints(run_dir).steps() == list(STEPS)
    assert_is(Checkpoints(run_dir), Checkpoints(run_dir).find())


def test_a_checkpoint_error_is_one_that_commands_print():
    assert issubclass(CheckpointError, UserError)

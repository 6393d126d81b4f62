"""Resume: runs that are killed, stopped, damaged or changed continue exactly as an uninterrupted run."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.commands import assert_is_one_error, command
from helpers.settings import with_changes

import transformer_jax as tj
from train.config import Config
from train.loop import run
from train.metrics import read_metrics
from transformer_jax.checkpoints.store import CheckpointError, Checkpoints
from transformer_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("compilation_cache")  # of the child processes, which train the same model
ROOT = Path(__file__).parents[1]
NUM_STEPS, SAVE_EVERY = 60, 4
SETTINGS = {
    "tokenizer": {"kind": "byte"},
    "model": {"num_layers": 1, "d_model": 10, "num_heads": 2, "max_len": 13, "dropout_rate": 0.1},
    "optimizer": {"warmup_steps": 5},
    "train": {"batch_size": 3, "num_steps": NUM_STEPS, "log_every": 1, "eval_every": 20, "tensorboard": False},
    "checkpoint": {"save_every": SAVE_EVERY, "keep": 2},
}


def flags_of(data, workdir, **changes):
    sections = with_changes(SETTINGS, data, changes)
    values = [
        f"--config.{name}.{field}={value}" for name, fields in sections.items() for field, value in fields.items()
    ]
    return ["--config=configs/gpt_char.py", f"--workdir={workdir}", *values]


def start(data, workdir):
    """Start the train command as a process of its own."""
    words = [sys.executable, "-m", "train", *flags_of(data, workdir)]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(words, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    process.stdout, process.stderr = process.communicate(timeout=300)
    return process


def train(data, workdir, **changes):
    """Run the train command in this process; return its code and its output."""
    return command("train", *flags_of(data, workdir, **changes))


def train_here(data, workdir, **changes):
    """Train in this process."""
    return run(Config.from_dict(with_changes(SETTINGS, data, changes)), workdir)


def wait_for(process, condition):
    """Poll until the condition holds or the process ends; return True if the process is still running."""
    deadline = time.monotonic() + 300
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return process.poll() is None


def has_logged(workdir, step):
    events = read_metrics(workdir / "metrics.jsonl")
    return bool(events) and events[-1]["step"] >= step


def losses(workdir):
    """Every (step, split, loss) of metrics.jsonl. Floats survive JSON exactly, so equal means bit-equal."""
    return [(event["step"], event["split"], event["loss"]) for event in read_metrics(workdir / "metrics.jsonl")]


def files(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def flip_a_bit(run_dir, step):
    file = sorted((run_dir / "checkpoints" / str(step) / "params").rglob("d/*"))[0]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return file


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "text.txt"
    rng = np.random.default_rng(0)
    words = "the cat sat on a mat while old dogs ran over green hills and rivers sang".split()
    path.write_text("\n".join(" ".join(rng.choice(words, 9)) for _ in range(60)))
    return path


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    """An uninterrupted run, with checkpoints at other steps."""
    workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    process = train(data, workdir, checkpoint__save_every=25)
    assert process.returncode == 0, process.stderr
    return workdir


@pytest.fixture
def finished(uninterrupted, tmp_path):
    """A copy of the uninterrupted run, for a test to change."""
    return shutil.copytree(uninterrupted, tmp_path / "run")


@pytest.fixture(scope="module")
def interrupted(data, tmp_path_factory):
    """A run that is killed, blocked, stopped and damaged in turn, and the output of each of its processes."""
    workdir = tmp_path_factory.mktemp("runs") / "interrupted"
    checkpoints, results = Checkpoints(workdir), {}

    def saving():
        return any(checkpoints.folder.glob("*.orbax-checkpoint-tmp*")) if checkpoints.folder.is_dir() else False

    # Killed before the first checkpoint.
    process = start(data, workdir)
    assert wait_for(process, lambda: has_logged(workdir, 2))
    process.kill()
    results["killed 0"] = finish(process)
    # Paused during a save while a second process tries the same directory; then killed, still during the save.
    process = start(data, workdir)
    assert wait_for(process, lambda: has_logged(workdir, 9) and saving())
    process.send_signal(signal.SIGSTOP)
    results["leftovers"] = saving()
    results["second"] = finish(start(data, workdir))
    process.kill()
    results["killed 1"] = finish(process)
    # Asked to stop.
    for signum, step in ((signal.SIGTERM, 25), (signal.SIGINT, 36)):
        process = start(data, workdir)
        assert wait_for(process, lambda step=step: has_logged(workdir, step))
        process.send_signal(signum)
        results[signum] = finish(process)
        results[f"after {signum}"] = losses(workdir)[-1][0], checkpoints.steps()[-1]
    # Damaged: the newest checkpoint is not sound.
    results["damaged"] = checkpoints.steps()[-1], checkpoints.steps()[-2], flip_a_bit(workdir, checkpoints.steps()[-1])
    results["last"] = finish(start(data, workdir))
    return workdir, results


# Interrupted


def test_an_interrupted_run_logs_the_losses_of_an_uninterrupted_one(uninterrupted, interrupted):
    workdir, results = interrupted
    assert [results[f"killed {i}"].returncode for i in range(2)] == [-signal.SIGKILL] * 2
    assert results["last"].returncode == 0, results["last"].stderr
    assert losses(workdir) == losses(uninterrupted)
    assert [step for step, split, _ in losses(workdir) if split == "train"] == list(range(1, NUM_STEPS + 1))
    assert [step for step, split, _ in losses(workdir) if split == "val"] == [20, 40, 60]


def test_its_parameters_are_bit_equal_to_those_of_an_uninterrupted_run(uninterrupted, interrupted):
    ends = [tj.load(workdir) for workdir in (uninterrupted, interrupted[0])]
    assert [end.step for end in ends] == [NUM_STEPS] * 2
    jax.tree.map(np.testing.assert_array_equal, ends[0].params, ends[1].params)


def test_leftovers_of_a_save_that_was_killed_are_removed(interrupted):
    workdir, results = interrupted
    assert results["leftovers"]
    assert not list((workdir / "checkpoints").glob("*tmp*"))


def test_a_second_process_in_the_same_directory_is_refused(interrupted):
    workdir, results = interrupted
    assert_is_one_error(results["second"], f"workdir={workdir}", "another process is training here")


@pytest.mark.parametrize("signum, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_asked_to_stop_saves_and_exits_with_the_code_of_the_signal(interrupted, signum, code):
    _, results = interrupted
    process, (last_logged, last_saved) = results[signum], results[f"after {signum}"]
    assert process.returncode == code, process.stderr
    assert last_saved == last_logged < NUM_STEPS
    assert f"stopped and saved at step {last_saved}" in process.stdout
    assert signal.Signals(signum).name in process.stderr and "Traceback" not in process.stderr


def test_a_flipped_bit_in_the_newest_checkpoint_is_reported_and_the_one_before_used(interrupted):
    _, results = interrupted
    newest, before, file = results["damaged"]
    assert f"warning: checkpoint {newest} is damaged and skipped: {file}" in results["last"].stderr
    assert f"resumed at step {before}" in results["last"].stdout


def test_a_second_signal_ends_the_process_at_once():
    script = "import time\nfrom train.signals import StopSignals\nwith StopSignals():\n    print('ready', flush=True)\n"
    script += "    while True:\n        time.sleep(1)\n"
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, **pipes)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "\n" and "A second signal exits at once" in process.stderr.readline()
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    process.communicate()


# Finished, and continued


def test_a_finished_run_that_is_started_again_changes_nothing(data, finished):
    before = files(finished)
    process = train(data, finished, checkpoint__save_every=25)
    assert process.returncode == 0
    assert process.stdout.startswith(f"Already trained: step {NUM_STEPS}") and "--run_dir=" in process.stdout
    assert process.stderr == "" and files(finished) == before


def test_a_larger_num_steps_continues_from_the_end(data, finished):
    before = losses(finished)
    process = train(data, finished, train__num_steps=NUM_STEPS + 7, checkpoint__save_every=25)
    assert process.returncode == 0, process.stderr
    assert losses(finished)[: len(before)] == before
    assert [step for step, split, _ in losses(finished)[len(before) :] if split == "train"] == list(range(61, 68))
    assert f"resumed at step {NUM_STEPS}\n" in process.stdout
    assert f"train.num_steps: {NUM_STEPS} -> {NUM_STEPS + 7}" in process.stdout
    assert Checkpoints(finished).find() == NUM_STEPS + 7


def test_a_text_that_was_moved_is_accepted(data, finished, tmp_path):
    moved = shutil.copy(data, tmp_path / "moved.txt")
    assert train_here(moved, finished) == finished


# Refused


def test_a_changed_model_is_refused_by_name_from_the_command_line(data, finished):
    before = files(finished)
    process = train(data, finished, model__num_layers=2, train__num_steps=99)
    assert_is_one_error(process, "model.num_layers=2", "was trained with 1", "train.num_steps")
    assert process.stdout == ""
    assert files(finished) == before


@pytest.mark.parametrize(
    "change",
    [
        {"model__dropout_rate": 0.2},
        {"model__positions": "sinusoidal"},
        {"train__seed": 1},
        {"train__batch_size": 4},
        {"train__accumulation": 3},
        {"tokenizer__kind": "char"},
        {"data__val_fraction": 0.2},
    ],
)
def test_a_change_of_model_data_or_order_is_refused_by_name(data, finished, change):
    before = files(finished)
    [(name, value)] = change.items()
    with pytest.raises(UserError, match=f"^{name.replace('__', '.')}={value!r}: "):
        train_here(data, finished, train__num_steps=99, **change)
    assert files(finished) == before


def test_a_text_that_has_changed_is_refused(data, finished, tmp_path):
    changed = tmp_path / "changed.txt"
    changed.write_text(data.read_text().replace("cat", "cow", 1))
    before = files(finished)
    with pytest.raises(UserError, match="data: text_sha256 is "):
        train_here(changed, finished, train__num_steps=99)
    assert files(finished) == before


def test_a_run_with_only_damaged_checkpoints_is_not_started_again(data, finished):
    damaged = [flip_a_bit(finished, step) for step in Checkpoints(finished).steps()]
    before = files(finished)
    process = train(data, finished)
    assert process.returncode == 2 and process.stdout == ""
    *warnings, error = process.stderr.splitlines()
    assert error.startswith("error: ") and "none of its checkpoints" in error
    assert all(any(str(file) in warning for warning in warnings) for file in damaged)
    assert files(finished) == before


def test_a_run_with_an_empty_checkpoint_folder_is_not_started_again(data, tmp_path):
    (tmp_path / "run" / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="none of its checkpoints"):
        train_here(data, tmp_path / "run")


# A loss that is not finite


def test_a_loss_that_stays_infinite_stops_the_run_with_finite_checkpoints(data, tmp_path):
    process = train(
        data,
        tmp_path,
        optimizer__peak_lr=1e30,
        optimizer__schedule="constant",
        optimizer__warmup_steps=0,
        train__max_consecutive_skips=3,
        checkpoint__save_every=1,
    )
    assert process.returncode == 1, process.stderr
    assert process.stderr.startswith("failed: stopped at step ") and process.stderr.count("\n") == 1
    for words in ("gradient norm", "learning rate 1e+30", "newest checkpoint is"):
        assert words in process.stderr
    steps = Checkpoints(tmp_path).steps()
    assert steps
    for step in steps:
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(tj.load(tmp_path, step).params))

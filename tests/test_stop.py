"""Stop: a signal at any moment, and steps that are skipped, lose nothing and leave nothing that cannot be resumed."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.settings import with_changes
from helpers.train_steps import step_without_update

import transformer_jax as tj
from train.loop import run
from train.metrics import MetricsLog, read_metrics
from train.parallel import Jit
from train.signals import Stopped
from train.tasks.base import Task
from transformer_jax.checkpoints.store import Checkpoints
from transformer_jax.errors import RunError

pytestmark = pytest.mark.usefixtures("compilation_cache")
ROOT = Path(__file__).parents[1]
NUM_STEPS = 8
SETTINGS = {
    "tokenizer": {"kind": "byte"},
    "model": {"num_layers": 1, "d_model": 10, "num_heads": 2, "max_len": 13},
    "optimizer": {"schedule": "constant", "warmup_steps": 0},
    "train": {"batch_size": 3, "num_steps": NUM_STEPS, "log_every": 1, "eval_every": 4, "tensorboard": False},
    "checkpoint": {"save_every": 3, "keep": 1},
}


@pytest.fixture(autouse=True)
def hangup_as_in_a_terminal():
    """The suite, too, may run under nohup, which processes inherit."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 2000)  # two batches of validation data
    return path


@pytest.fixture
def train(text):
    """Train in this process; a changed setting is named section__field."""

    def train(workdir, **changes):
        return run(with_changes(SETTINGS, text, changes), workdir)

    return train


@pytest.fixture(scope="module")
def uninterrupted(text, tmp_path_factory):
    settings = SETTINGS | {"data": {"source": "text", "path": str(text)}}
    return run(settings, tmp_path_factory.mktemp("runs") / "uninterrupted")


def events(workdir):
    """Every event of metrics.jsonl without the numbers that are measured by a clock."""
    return [{k: v for k, v in e.items() if k != "tokens_per_second"} for e in read_metrics(workdir / "metrics.jsonl")]


def best_and_last(workdir):
    return [tj.load(workdir, which) for which in ("best", "latest")]


def signal_at_call(patch, target, name, number, signum):
    """Send this process a signal in the call of a method with this number; returns the list of calls."""
    calls, original = [], getattr(target, name)

    def called(*args, **kwargs):
        calls.append(name)
        if len(calls) == number:
            os.kill(os.getpid(), signum)
        return original(*args, **kwargs)

    patch.setattr(target, name, called)
    return calls


def stop(train, workdir, target, name, number, signum=signal.SIGTERM, **changes):
    """Train until a signal in a call; returns the exit code and the calls."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped) as stopped:
        calls = signal_at_call(patch, target, name, number, signum)
        train(workdir, **changes)
    return stopped.value.code, calls


# Signals


def test_an_evaluation_that_a_signal_breaks_off_is_made_by_the_resumed_run(train, uninterrupted, tmp_path):
    workdir, checkpoints = tmp_path / "run", Checkpoints(tmp_path / "run")
    # Within the first evaluation, after step 4; then within the same again, where nothing is left to save.
    code, calls = stop(train, workdir, Jit, "evaluate", 1)
    assert (code, len(calls), checkpoints.steps()[-1]) == (143, 1, 4)
    assert tj.read_meta(workdir).val_score is None and events(workdir)[-1]["split"] == "train"
    code, calls = stop(train, workdir, Jit, "evaluate", 1, signal.SIGINT)
    assert (code, len(calls), checkpoints.steps()[-1]) == (130, 1, 4)
    # Within the last one, after step 8.
    code, calls = stop(train, workdir, Jit, "evaluate", 3, signal.SIGHUP)
    assert (code, len(calls), checkpoints.steps()[-1]) == (129, 3, NUM_STEPS)
    train(workdir)
    assert events(workdir) == events(uninterrupted)
    for found, expected in zip(best_and_last(workdir), best_and_last(uninterrupted), strict=True):
        assert found.step == expected.step
        jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    metas = [tj.read_meta(folder) for folder in (workdir, uninterrupted)]
    assert metas[0].val_score == metas[1].val_score and metas[0].training.best == metas[1].training.best
    assert all(path.name.isdecimal() for path in checkpoints.folder.iterdir())


def test_a_signal_during_a_step_saves_that_step_and_makes_no_evaluation(train, tmp_path):
    code, calls = stop(train, tmp_path, Jit, "train", 4)
    assert (code, len(calls)) == (143, 4)
    assert Checkpoints(tmp_path).steps()[-1] == 4 and tj.read_meta(tmp_path).val_score is None


def test_a_signal_during_a_save_stops_there_without_another_step(train, tmp_path):
    code, calls = stop(train, tmp_path, Checkpoints, "save", 1)
    assert (code, len(calls), Checkpoints(tmp_path).steps()) == (143, 1, [3])


def test_a_signal_before_the_first_step_ends_the_run_where_it_is(train, tmp_path, capfd):
    code, calls = stop(train, tmp_path, Task, "batches", 1)
    assert (code, len(calls), Checkpoints(tmp_path).steps()) == (143, 1, [])
    assert "SIGTERM: stopping; there is nothing to save" in capfd.readouterr().err


def test_a_signal_when_all_is_saved_does_not_undo_the_end(train, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        signal_at_call(patch, MetricsLog, "close", 1, signal.SIGTERM)
        assert train(tmp_path) == tmp_path
    assert (tmp_path / "loss.png").exists()


def test_two_signals_at_once_are_one(train, uninterrupted, tmp_path):
    def both(*args):
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    original = Jit.train
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Jit, "train", both)
        train(tmp_path)
    train(tmp_path)
    assert events(tmp_path) == events(uninterrupted)


SIGNALS_IN_C = """
import hashlib
from train.signals import StopSignals
with StopSignals():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2 * 10**8)  # for minutes, and no instruction of Python is run
"""


def start(script, *, nohup=False):
    words = [*["nohup"] * nohup, sys.executable, "-c", script]
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("signum, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_second_signal_ends_a_process_that_computes_at_once(signum, code):
    with start(SIGNALS_IN_C) as process:
        process.send_signal(signum)
        process.stderr.readline()
        assert process.stderr.readline().startswith(f"{signum.name}: ")
        process.send_signal(signum)
        assert process.wait(timeout=60) == code


def test_a_hangup_that_nohup_ignores_stays_ignored():
    with start(SIGNALS_IN_C, nohup=True) as process:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.5)  # of signals that wait together, the last is handled first
        process.send_signal(signal.SIGTERM)
        line = next(line for line in process.stderr if line.startswith("SIG"))
        assert line.startswith("SIGTERM: ")
        process.kill()


def test_a_log_that_nobody_reads_any_more_does_not_end_the_run(text, tmp_path):
    settings = json.dumps(SETTINGS | {"data": {"source": "text", "path": str(text)}})
    script = f"import json, sys\nfrom train.loop import run\nrun(json.loads({settings!r}), {str(tmp_path)!r})"
    words = [sys.executable, "-c", script]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=300) == 0, process.stderr.read()
    assert Checkpoints(tmp_path).steps()[-1] == NUM_STEPS


# Skipped steps


def skipping(*skipped):
    """Training step without update that counts these steps as skipped."""

    def step(state, batch, max_consecutive_skips, **_):
        is_skipped = jnp.isin(state.step + 1, jnp.array(skipped)) | (state.consecutive_skips >= max_consecutive_skips)
        return dataclasses.replace(
            step_without_update(state, batch),
            consecutive_skips=jnp.where(is_skipped, state.consecutive_skips + 1, 0),
            skipped_steps=state.skipped_steps + is_skipped,
        )

    return step


@pytest.fixture
def skip(monkeypatch):
    return lambda *steps: monkeypatch.setattr("train.loop.train_step", skipping(*steps))


def test_a_save_that_is_due_at_a_skipped_step_is_made_after_it(train, skip, tmp_path):
    skip(3, 4)
    train(tmp_path, checkpoint__keep=9)
    assert Checkpoints(tmp_path).steps() == [5, 6, 8]
    assert [e["step"] for e in events(tmp_path) if e["split"] == "val"] == [4, 8]
    assert tj.read_meta(tmp_path).training.best.step == 8  # the parameters of step 4 were not saved


@pytest.mark.parametrize("keep", [1, 2])
def test_no_checkpoint_is_saved_or_deleted_while_steps_are_skipped(train, skip, tmp_path, keep):
    skip(*range(6, 99))
    with pytest.raises(RunError, match="in all steps since 6 .* or was saved; the newest checkpoint is 5. The same"):
        train(tmp_path, checkpoint__keep=keep, checkpoint__save_every=1, train__num_steps=30)
    assert Checkpoints(tmp_path).steps() == [3, 4, 5][2 - keep :]  # 4 was measured: it is the best
    with pytest.raises(RunError, match="in all steps since 6 "):  # the same again
        train(tmp_path, checkpoint__keep=keep, checkpoint__save_every=1, train__num_steps=30)
    assert Checkpoints(tmp_path).steps() == [3, 4, 5][2 - keep :]


def test_a_signal_while_steps_are_skipped_saves_nothing_and_names_what_is_kept(train, skip, tmp_path, capsys):
    skip(*range(6, 99))
    code, _ = stop(train, tmp_path, Jit, "train", 7, checkpoint__save_every=2, train__num_steps=30)
    assert (code, Checkpoints(tmp_path).steps()) == (143, [2, 4])
    out = capsys.readouterr().out
    assert "stopped at step 7, which was skipped: nothing is saved, the newest checkpoint is 4" in out


def test_the_last_step_is_saved_though_skipped_if_its_evaluation_is_finite(train, skip, tmp_path, monkeypatch):
    skip(8)
    train(tmp_path / "finite")
    assert Checkpoints(tmp_path / "finite").steps()[-1] == 8
    monkeypatch.setattr(Task, "evaluate", lambda *_: {"loss": math.nan, "perplexity": math.nan})
    with pytest.raises(RunError, match="since 8 .* the newest checkpoint is 6"):
        train(tmp_path / "nan")
    assert Checkpoints(tmp_path / "nan").steps() == [3, 6]


@pytest.mark.parametrize("save_every, keep", [(1, 1), (3, 2)])
def test_a_run_that_diverges_goes_on_when_the_rate_is_lowered_as_it_says(train, tmp_path, save_every, keep):
    changes = {"checkpoint__save_every": save_every, "checkpoint__keep": keep, "train__max_consecutive_skips": 4}
    train(tmp_path, train__num_steps=6, **changes)
    with pytest.raises(RunError) as error:
        train(tmp_path, train__num_steps=14, optimizer__peak_lr=1e30, **changes)
    newest = Checkpoints(tmp_path).steps()[-1]
    assert f"the newest checkpoint is {newest}. The same command with a lower optimizer.peak_lr" in str(error.value)
    train(tmp_path, train__num_steps=14, **changes)
    losses = [event["loss"] for event in events(tmp_path) if event["split"] == "val"]
    assert losses[-1] < losses[0]
    assert Checkpoints(tmp_path).steps()[-1] == 14


def test_clipping_may_begin_when_a_run_is_resumed(train, tmp_path):
    train(tmp_path, optimizer__clip_norm=0.0)
    train(tmp_path, optimizer__clip_norm=1.0, train__num_steps=NUM_STEPS + 2)
    assert tj.load(tmp_path).step == NUM_STEPS + 2

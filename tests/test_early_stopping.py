"""Early stopping, train.best_by, and the moving average of the parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.train_steps import make, make_batch, step_without_update

import transformer_jax as tj
from train.early_stopping import IS_LARGER_BETTER, BestTracker, best_of
from train.evaluation import evaluate
from train.loop import run as train
from train.losses import classify
from train.metrics import read_metrics, text_metrics
from train.state import create_state, eval_params, from_checkpoint, to_checkpoint
from train.tasks.base import Task
from train.tasks.scoring import confusions, macro_f1
from transformer_jax.checkpoints.meta import BestScore
from transformer_jax.checkpoints.store import Checkpoints

pytestmark = pytest.mark.usefixtures("compilation_cache")


def settings(folder, **changes):
    config = {
        "data": {"source": "text", "path": str(folder / "a.txt")},
        "tokenizer": {"kind": "byte"},
        "model": {"num_layers": 1, "d_model": 10, "num_heads": 2, "max_len": 13},
        "optimizer": {"schedule": "constant", "warmup_steps": 0},
        "train": {"batch_size": 3, "num_steps": 12, "log_every": 1, "eval_every": 2, "tensorboard": False},
        "checkpoint": {"save_every": 100, "keep": 1},
    }
    for name, value in changes.items():
        section, field = name.split("__")
        config.setdefault(section, {})[field] = value
    (folder / "a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    return config


def test_the_best_is_the_smallest_loss_or_the_largest_accuracy():
    best = BestTracker("loss")
    for step, loss in ((2, 3.0), (4, 2.0), (6, 2.5), (8, 2.0), (10, float("nan"))):
        best = best.after({"loss": loss}, step)
    assert (best.step, best.score, str(best)) == (4, -2.0, "loss 2.0000 at step 4")
    best = BestTracker("accuracy").after({"accuracy": 0.5, "loss": 1.0}, 2).after({"accuracy": 0.7, "loss": 2.0}, 4)
    assert (best.step, best.score) == (4, 0.7)
    assert best.is_stale(8, 4) and not best.is_stale(7, 4) and not best.is_stale(99, 0)
    with pytest.raises(tj.UserError, match="train.best_by='bleu': must be a metric of this task. Take one of: loss"):
        BestTracker("bleu").after({"loss": 1.0, "leak": False}, 2)


@pytest.mark.parametrize("metric", IS_LARGER_BETTER)
def test_a_better_value_of_every_metric_is_the_best(metric):
    of_labels = ("accuracy", "macro_f1", "micro_f1", "exact_match", "entity_f1")
    worse, better = (0.3, 0.7) if metric in of_labels else (0.7, 0.3)
    best = BestTracker(metric).after({metric: worse}, 2).after({metric: better}, 4).after({metric: worse}, 6)
    assert best.step == 4 and str(best) == f"{metric} {better:.4f} at step 4"


def test_scores_by_two_metrics_are_never_compared():
    saved = BestScore("loss", -2.0, 4)
    assert best_of(saved, "loss") == BestTracker("loss", -2.0, 4)
    assert best_of(None, "accuracy") == BestTracker("accuracy")
    with pytest.raises(tj.UserError, match="train.best_by='accuracy': .* scores by 'loss'.* Take train.best_by='loss'"):
        best_of(saved, "accuracy")


def test_the_best_checkpoint_is_the_one_of_train_best_by(tmp_path, monkeypatch):
    values = iter([(3.0, 0.4), (1.0, 0.6), (2.0, 0.9), (4.0, 0.7)])  # loss, accuracy

    def evaluate(task, eval_step, params):
        return dict(zip(("loss", "accuracy"), next(values), strict=True)) | text_metrics(1.0, 1.0)

    monkeypatch.setattr(Task, "evaluate", evaluate)
    monkeypatch.setattr("train.loop.train_step", step_without_update)
    config = settings(
        tmp_path,
        train__task="masked_lm",
        train__best_by="accuracy",
        train__num_steps=8,
        train__patience=2,
        checkpoint__keep=1,
    )
    workdir = train(config, tmp_path / "run")
    assert tj.load(workdir, "best").step == 6 and Checkpoints(workdir).steps() == [6, 8]
    with pytest.raises(tj.UserError, match="train.best_by='loss': .* was trained with 'accuracy'"):
        train(config | {"train": config["train"] | {"best_by": "loss", "num_steps": 10}}, workdir)


def test_a_metric_that_the_task_does_not_measure_is_refused_before_the_first_step(tmp_path):
    expected = (
        "train.best_by='accuracy': must be a metric that train.task='causal_lm' measures in this run. Take one of: "
    )
    with pytest.raises(tj.UserError, match=f"{expected}loss, perplexity, bits_per_byte."):
        train(settings(tmp_path, train__best_by="accuracy"), tmp_path / "run")
    assert Checkpoints(tmp_path / "run").steps() == []


def test_a_run_whose_loss_does_not_fall_stops_early_and_stays_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("train.loop.train_step", step_without_update)  # the first evaluation is the best
    config = settings(tmp_path, train__patience=2)
    workdir = train(config, tmp_path / "run")
    assert "stopped early: the best is loss" in capsys.readouterr().out
    assert [e["step"] for e in read_metrics(workdir / "metrics.jsonl") if e["split"] == "val"] == [2, 4, 6]
    assert Checkpoints(workdir).steps() == [2, 6] and tj.load(workdir, "best").step == 2
    train(config, workdir)
    assert Checkpoints(workdir).steps() == [2, 6]
    train(settings(tmp_path), workdir)  # patience may change
    assert Checkpoints(workdir).steps()[-1] == 12


def test_the_average_is_that_of_all_parameters_so_far_and_is_what_is_used():
    step, state = make(optax.sgd(0.1), ema_decay=0.6)
    state = create_state(state.params, optax.sgd(0.1), has_ema=True)
    step, expected = jax.jit(step), jax.tree.map(np.asarray, state.params)
    for i in range(5):
        state = step(state, make_batch(i))
        decay = min(0.6, (1 + i) / (10 + i))
        expected = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * np.asarray(p), expected, state.params)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, eval_params(state), expected)
    bad = {"tokens": make_batch(7)["tokens"], "is_token": make_batch(7)["is_token"]}
    bad_step, _ = make(optax.sgd(0.1), ema_decay=0.6, loss_fn=lambda *a, **k: (jnp.nan, jnp.float32(1), {}))
    jax.tree.map(np.testing.assert_array_equal, jax.jit(bad_step)(state, bad).ema_params, state.ema_params)
    used, rest = to_checkpoint(state)
    jax.tree.map(np.testing.assert_array_equal, from_checkpoint(used, rest, {}), state)


def test_a_run_with_an_average_is_measured_saved_and_resumed_by_it(tmp_path):
    config = settings(tmp_path, train__ema_decay=0.9, train__eval_every=6, checkpoint__save_every=6, checkpoint__keep=3)
    workdir = train(config, tmp_path / "run")
    plain = train(settings(tmp_path, train__eval_every=6), tmp_path / "plain")
    losses = [[e["loss"] for e in read_metrics(w / "metrics.jsonl") if e["split"] == "val"] for w in (workdir, plain)]
    assert losses[0] != losses[1]
    half = train(config | {"train": config["train"] | {"num_steps": 6}}, tmp_path / "half")
    train(config, half)
    jax.tree.map(np.testing.assert_array_equal, tj.load(half).params, tj.load(workdir).params)


# Counts that become metrics


def test_macro_f1_is_the_same_from_batches_of_any_size_and_from_all_at_once():
    rng = np.random.default_rng(6)
    logits, label = rng.normal(size=(23, 5)).astype(np.float32), rng.integers(0, 4, 23)  # no text has label 4

    def batches(size):
        for first in range(0, 23, size):
            part = np.arange(first, first + size)
            rows = np.minimum(part, 22)
            yield {"tokens": logits[rows], "is_token": None, "label": label[rows], "is_example": part < 23}

    @jax.jit
    def eval_step(params, batch):
        return classify(lambda tokens, is_token, deterministic: tokens, batch)

    expected = macro_f1(confusions("01234", [str(i) for i in label], [str(i) for i in logits.argmax(1)]))
    for size in (4, 23, 7):
        measured = evaluate(eval_step, None, batches(size))
        assert measured["macro_f1"] == pytest.approx(expected)
        assert measured["accuracy"] == pytest.approx(np.mean(logits.argmax(1) == label))

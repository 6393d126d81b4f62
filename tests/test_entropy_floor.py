"""Entropy floor: a loss clearly below it is reported as a leak, and no other loss is."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.known_texts import windows

import transformer_jax as tj
from configs import default
from train import losses
from train.config import Config, DataConfig
from train.data.batches import eval_batches, load_corpus
from train.data.entropy import TRUTHS, draw_part, known_truth
from train.entropy_floor import compare, floor_of, paired, with_floor
from train.evaluation import evaluate
from train.loop import run as train
from train.metrics import read_metrics
from train.resume import trained_config
from train.tasks.scoring import Options, causal_lm
from transformer_jax.tokenizers import ByteTokenizer, train_tokenizer

pytestmark = pytest.mark.usefixtures("compilation_cache")
each_source = pytest.mark.parametrize("source", TRUTHS)


# The comparison


def in_jax(truth, mix=lambda probabilities, tokens: probabilities):
    """The true distribution as a model, with its own forward algorithm; `mix` changes the true probabilities.

    `losses.causal_lm` calls it as it calls a model: first for activations (here the tokens), then for logits.
    """
    arcs = jnp.array(truth.arcs)

    def logits(tokens):
        def advance(belief, column):
            belief = jnp.einsum("bi,bij->bj", belief, arcs[column])
            belief /= belief.sum(axis=1, keepdims=True)
            return belief, jnp.einsum("bj,vjk->bv", belief, arcs)

        start = jnp.tile(jnp.array(truth.stationary), (len(tokens), 1))
        probabilities = jax.lax.scan(advance, start, tokens.T)[1].swapaxes(0, 1)
        return jnp.log(jnp.maximum(mix(probabilities, tokens), 1e-30))

    return lambda x, method, **_: x[..., None] if method == "activations" else logits(x[..., 0])


def evaluation(model):
    """Compiled evaluation step of a model; model: params -> apply."""
    return jax.jit(lambda params, batch: paired(losses.causal_lm)(model(params), batch))


def compared(truth, text, step, params=None, rows=29):
    """Evaluation of this model on this text, as in a run. Padding is character 0 of the truth, and is not counted."""
    tokens = windows(truth, text, 1)[:, 0].astype(np.int32)

    def floor(batch):
        return truth.nats(np.where(batch["is_token"], batch["tokens"], -1)).sum(axis=1)

    return evaluate(step, params, with_floor(lambda: eval_batches(tokens, 23, rows), floor)())


def noise(key, size):
    """Slightly different probabilities, as of a well trained model."""

    def mix(probabilities, tokens):
        noisy = probabilities * jnp.exp(size * jax.random.normal(key, probabilities.shape))
        return noisy / noisy.sum(axis=-1, keepdims=True)

    return mix


def sees_targets(share):
    """The truth mixed with a model that sees the target, as one whose mask is off by one."""

    def mix(probabilities, tokens):
        seen = jax.nn.one_hot(jnp.roll(tokens, -1, axis=1), probabilities.shape[-1])
        return (1 - share) * probabilities + share * seen

    return mix


@each_source
def test_twenty_models_without_a_leak_on_twenty_texts_report_none(source):
    truth = known_truth(source)
    step = evaluation(lambda key: in_jax(truth, noise(key, 0.02)))
    for seed in range(20):
        values = compared(truth, truth.draw(2_003, seed + 100), step, jax.random.key(seed))
        assert not values["leak"], values
        assert -3 * values["gap_error"] < values["gap"] < 0.01


@each_source
def test_the_true_distribution_is_at_the_floor_and_no_leak(source):
    truth = known_truth(source)
    values = compared(truth, truth.draw(5_003, 7), evaluation(lambda _: in_jax(truth)))
    assert abs(values["gap"]) < 1e-5 and not values["leak"]


@each_source
def test_a_model_with_a_thousandth_of_the_target_mixed_in_is_reported(source):
    truth = known_truth(source)
    values = compared(truth, truth.draw(20_011, 8), evaluation(lambda _: in_jax(truth, sees_targets(0.001))))
    assert values["leak"] and -0.1 < values["gap"] < -3 * values["gap_error"] < 0


def test_gap_and_error_come_from_differences_by_window_for_any_batch_size():
    truth = known_truth("hmm")
    text, step = truth.draw(1_009, 9), evaluation(lambda _: in_jax(truth, lambda p, _: 0.7 * p + 0.3 / p.shape[-1]))
    results = [compared(truth, text, step, rows=rows) for rows in (1, 7, 53)]
    symbols = np.append(windows(truth, text, 1)[:, 0], [-1] * 5)  # 1,008 targets: 43 windows of 23 and one of 19
    rows = np.stack([symbols[i : i + 24] for i in range(0, 1_009, 23)])
    true = truth.nats(rows)
    chosen = np.where(rows[:, 1:] >= 0, 0.7 * np.exp(-true) + 0.3 / len(truth.characters), 1.0)
    differences = (-np.log(chosen) - true).sum(axis=1)
    expected = {
        "floor": true.sum() / 1_008,
        "gap": differences.sum() / 1_008,
        "gap_error": differences.std(ddof=1) * 44**0.5 / 1_008,
    }
    for values in results:
        np.testing.assert_allclose([values[name] for name in expected], list(expected.values()), rtol=1e-3)
        assert values["loss"] == pytest.approx(values["floor"] + values["gap"]) and not values["leak"]


@pytest.mark.parametrize("errors, is_leak", [(2.9, False), (3.1, True)])
def test_a_leak_is_more_than_three_standard_errors_below_the_floor(errors, is_leak):
    scatter = np.random.default_rng(0).normal(size=101)
    differences = scatter - scatter.mean() - errors * scatter.std(ddof=1) / 101**0.5
    values = compare(
        {"loss": 900.0 + differences.sum(), "floor": 900.0, "windows": 101.0, "gap_squares": np.sum(differences**2)},
        707.0,
    )
    assert values["gap"] / values["gap_error"] == pytest.approx(-errors)
    assert values["leak"] == is_leak


def test_a_single_window_is_never_a_leak():
    values = compare({"loss": 1.0, "floor": 9.0, "gap_squares": 64.0, "windows": 1.0}, 7.0)
    assert math.isnan(values["gap_error"]) and not values["leak"]


# In a run


def config_of(source, **changes):
    config = default.get_config()
    settings = dict(
        data__source=source,
        data__val_fraction=0.01,
        model__max_len=23,
        model__num_layers=1,
        model__d_model=20,
        model__num_heads=2,
        train__batch_size=8,
        train__num_steps=20,
        train__eval_every=10,
        train__tensorboard=False,
    )
    for name, value in (settings | changes).items():
        section, field = name.split("__")
        config[section][field] = value
    return config


@each_source
def test_a_run_and_its_evaluation_write_floor_and_gap(source, tmp_path, capsys):
    workdir = train(config_of(source, train__tensorboard=source == "markov"), tmp_path / "run")
    events = [event for event in read_metrics(workdir / "metrics.jsonl") if event["split"] == "val"]
    assert [event["step"] for event in events] == [10, 20]
    truth, corpus = known_truth(source), load_corpus(DataConfig(source=source, val_fraction=0.01), Config().tokenizer)
    symbols = windows(truth, corpus.tokenizer.decode(corpus.val_tokens), 1)[:, 0]
    symbols = np.append(symbols, [-1] * (-(len(symbols) - 1) % 23))
    rows = symbols[np.arange(0, len(symbols) - 1, 23)[:, None] + np.arange(24)]
    for event in events:
        assert event["floor"] == pytest.approx(truth.nats(rows).sum() / 4_999, rel=1e-6)
        assert event["gap"] == pytest.approx(event["loss"] - event["floor"]) and event["gap"] > event["gap_error"] > 0
        assert event["leak"] is False
    output = capsys.readouterr().out
    assert f"floor {events[1]['floor']:.4f}  gap {events[1]['gap']:.4f}" in output and "leak?" not in output
    config, run = trained_config(tj.read_meta(workdir), workdir), tj.load(workdir, "latest")
    again, test = (causal_lm(run, config, split, Options()).values for split in ("val", "test"))
    assert again["loss"] == pytest.approx(events[1]["loss"], rel=1e-5)
    assert again["floor"] == pytest.approx(events[1]["floor"], rel=1e-6)
    assert test["floor"] != again["floor"] and test["gap"] > 0
    if source == "markov":  # the training text is long, and treated alike for all sources
        learned = causal_lm(run, config, "train", Options()).values
        assert "loss" in learned and "floor" not in learned  # memorized text may be below it


def test_targets_that_are_not_shifted_are_reported_as_a_leak(monkeypatch, tmp_path, capsys):
    def unshifted(apply, batch, deterministic=True):
        tokens, is_target = batch["tokens"][:, :-1], batch["is_token"][:, :-1]
        x = apply(tokens, deterministic=deterministic, method="activations")
        nats = losses.cross_entropy(lambda x: apply(x, method="logits"), x, tokens)
        return jnp.sum(jnp.where(is_target, nats, 0.0)), jnp.sum(is_target, dtype=jnp.float32), {}

    monkeypatch.setattr(losses, "causal_lm", unshifted)
    config = config_of("hmm", train__num_steps=60, train__eval_every=60, optimizer__peak_lr=3e-2)
    workdir = train(config, tmp_path / "run")
    last = read_metrics(workdir / "metrics.jsonl")[-1]
    assert last["leak"] is True and last["gap"] < -0.5
    assert "leak? the loss is" in capsys.readouterr().out
    assert json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["leak"] is True


def test_only_tokens_that_are_characters_have_a_floor_and_it_is_the_same():
    text = draw_part("grammar", "val", 503)
    floors = []
    for tokenizer in (train_tokenizer("char", 0, text), ByteTokenizer()):
        batch = next(eval_batches(tokenizer.encode(text), 31, 17))
        floors.append(floor_of("grammar", tokenizer)(batch))
    np.testing.assert_array_equal(*floors)
    assert floors[0].shape == (17,) and floors[0].min() > 0
    assert floor_of("grammar", train_tokenizer("bpe", 300, text)) is None
    assert floor_of("text", ByteTokenizer()) is None

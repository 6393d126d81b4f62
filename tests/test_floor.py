"""Texts whose true entropy is known: the floors are exact, and what is below them is called a leak."""

import functools
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import transformer_jax as tj
from configs import default
from train import objectives
from train.config import Config, DataConfig
from train.data.entropy import TRUTHS, Grammar, draw_part, hidden_markov_model, known_truth, markov_chain
from train.data.pipeline import eval_batches, load_corpus
from train.data.sources import load_text, split_text
from train.floor import compare, floor_of, paired, with_floor
from train.loop import run as train
from train.measure import measure
from train.metrics import read_metrics
from train.scoring import Options, causal_lm
from transformer_jax.tokenizers import ByteTokenizer, train_tokenizer

RNG = np.random.default_rng(0)
TINY = Grammar({"1": 0.6, "x": 0.4}, {"+": 0.7, "*": 0.3}, {"()": 0.8, "[]": 0.2}, (0.2, 0.1), (0.3, 0.0), 0.1)
SHORT = Grammar({"1": 0.6, "x": 0.4}, {"+": 1.0}, {"()": 0.8, "[]": 0.2}, (0.05, 0.03), (0.2, 0.0), 0.03)

each_source = pytest.mark.parametrize("source", TRUTHS)


def stochastic(*shape, concentration=0.5):
    return RNG.dirichlet(np.full(shape[-1], concentration), size=shape[:-1])


def windows(truth, text, length):
    """[B, length] places in the truth's characters, windows that follow each other."""
    symbols = np.array([truth.characters.index(character) for character in text])
    return symbols[: len(symbols) // length * length].reshape(-1, length)


# Floors are what brute force says


def test_the_floor_of_a_markov_chain_is_the_product_of_its_transitions():
    transitions = stochastic(5, 5)
    symbols = RNG.integers(0, 5, (7, 12))
    expected = -np.log(transitions[symbols[:, :-1], symbols[:, 1:]])
    np.testing.assert_allclose(markov_chain("abcde", transitions).nats(symbols), expected, rtol=1e-9)


def test_the_floor_of_a_hidden_markov_model_is_the_sum_over_all_hidden_paths():
    transitions, emissions = stochastic(3, 3), stochastic(3, 5)
    start = np.linalg.matrix_power(transitions, 2000)[0]
    symbols = RNG.integers(0, 5, (11, 7))

    def probability(seen):
        return sum(
            start[path[0]]
            * math.prod(transitions[a, b] for a, b in itertools.pairwise(path))
            * math.prod(emissions[state, v] for state, v in zip(path, seen, strict=True))
            for path in itertools.product(range(3), repeat=len(seen))
        )

    expected = [[-math.log(probability(row[: t + 1]) / probability(row[:t])) for t in range(1, 7)] for row in symbols]
    nats = hidden_markov_model("abcde", transitions, emissions).nats(symbols)
    np.testing.assert_allclose(nats, expected, rtol=1e-9)


def test_the_floor_of_a_line_of_the_grammar_is_the_product_of_its_rules():
    truth = TINY.truth()
    lines = [line + "\n" for line in truth.draw(20_000, 3).split("\n")[1:-1]]

    def expression(text, depth):  # what follows it, and its probability
        text, p = term(text, depth)
        if text[0] not in TINY.operators:
            return text, p * (1 - TINY.more[depth])
        rest, other = expression(text[1:], depth)
        return rest, p * TINY.more[depth] * TINY.operators[text[0]] * other

    def term(text, depth):
        if text[0] == "-":
            rest, p = term(text[1:], depth)
            return rest, p * TINY.minus
        if text[0] in TINY.atoms:
            return text[1:], (1 - TINY.minus - TINY.open[depth]) * TINY.atoms[text[0]]
        pair = next(pair for pair in TINY.brackets if pair[0] == text[0])
        rest, p = expression(text[1:], depth + 1)
        assert rest[0] == pair[1]
        return rest[1:], p * TINY.open[depth] * TINY.brackets[pair]

    distinct = sorted(set(lines), key=lambda line: (-len(line), line))[:101]
    assert len(distinct[0]) > 9 and len(distinct) == 101
    for line in distinct:
        rest, p = expression(line, 0)
        assert rest == "\n"
        np.testing.assert_allclose(truth.nats(windows(truth, "\n" + line, len(line) + 1)).sum(), -np.log(p), rtol=1e-9)


def test_the_floor_in_the_middle_of_the_grammars_text_is_the_sum_over_all_lines_and_places():
    def expressions(depth, length):  # all of at most `length` characters, with their probabilities
        for text, p in terms(depth, length):
            yield text, p * (1 - SHORT.more[depth])
            for operator, q in SHORT.operators.items():
                for rest, r in expressions(depth, length - len(text) - 1):
                    yield text + operator + rest, p * SHORT.more[depth] * q * r

    def terms(depth, length):
        if length < 1:
            return
        for atom, p in SHORT.atoms.items():
            yield atom, (1 - SHORT.minus - SHORT.open[depth]) * p
        for text, p in terms(depth, length - 1):
            yield "-" + text, SHORT.minus * p
        if SHORT.open[depth]:
            for (left, right), p in SHORT.brackets.items():
                for text, q in expressions(depth + 1, length - 2):
                    yield left + text + right, SHORT.open[depth] * p * q

    lines = [(text + "\n", p) for text, p in expressions(0, 9)]
    assert len(dict(lines)) == len(lines) and 0.9998 < sum(p for _, p in lines) < 1  # unambiguous; the rest is longer

    @functools.cache
    def begins(text):  # the probability that what begins with a line begins so
        return sum(
            p * (begins(text[len(line) :]) if len(line) < len(text) else 1.0)
            for line, p in lines
            if text.startswith(line) or line.startswith(text)
        )

    def inside(text):  # and that what begins at any place of any line does
        return sum(
            p * (begins(text[len(line) - i :]) if len(line) - i < len(text) else 1.0)
            for line, p in lines
            for i in range(len(line))
            if text.startswith(line[i:]) or line[i:].startswith(text)
        )

    truth = SHORT.truth()
    text = truth.draw(13 * 5, 4)
    found = [text[i : i + 5] for i in range(0, len(text), 5)]
    expected = [math.log(inside(window[0]) / inside(window)) for window in found]
    nats = truth.nats(windows(truth, text, 5)).sum(axis=1)
    assert any(")" in window or "]" in window for window in found)
    np.testing.assert_allclose(nats, expected, rtol=0.01)


# The truth is one


@each_source
def test_true_probabilities_sum_to_1_and_nothing_that_was_drawn_is_impossible(source):
    truth = known_truth(source)
    predicted = truth.predict(windows(truth, draw_part(source, "test", 3_000), 37))
    assert predicted.min() >= 0 and np.isfinite(truth.nats(windows(truth, draw_part(source, "val", 3_000), 37))).all()
    np.testing.assert_allclose(predicted.sum(axis=2), 1, rtol=1e-12)
    np.testing.assert_allclose(truth.arcs.sum(axis=(0, 2)), 1, rtol=1e-12)


def test_the_floor_of_a_long_text_agrees_with_the_entropy_rate_of_the_chain():
    transitions = known_truth("markov").arcs.sum(axis=0)
    share = np.linalg.matrix_power(transitions, 4096)[0]
    rate = -np.sum(share[:, None] * transitions * np.log(transitions))
    truth = known_truth("markov")
    sums = truth.nats(windows(truth, truth.draw(200_000, 5), 101)).mean(axis=1)
    assert abs(sums.mean() - rate) < 4 * sums.std() / len(sums) ** 0.5 < 0.02


def has_one_limit(truth):
    chain = np.linalg.matrix_power(truth.arcs.sum(axis=0), 4096)
    return bool(np.abs(chain - truth.stationary).max() < 1e-9)


@each_source
def test_windows_are_equal_in_law_wherever_a_text_is_cut(source):
    assert has_one_limit(known_truth(source))
    every_line_even = Grammar({"1": 1.0}, {"+": 1.0}, {"()": 1.0}, (0.5, 0.5), (0.5, 0.0), 0.0).truth()
    assert not has_one_limit(every_line_even)


@each_source
def test_parts_are_drawn_apart_and_have_nothing_in_common(source):
    parts = {part: draw_part(source, part, 20_011) for part in ("train", "val", "test")}
    for part, text in parts.items():
        assert draw_part(source, part, 503) == text[:503]  # whatever the length of the others
        for other in set(parts) - {part}:
            assert not {text[i : i + 40] for i in range(0, 20_011 - 40)} & {
                parts[other][i : i + 40] for i in range(0, 20_011 - 40, 40)
            }
    train_text, val_text = split_text(load_text(DataConfig(source=source, val_fraction=0.03)), 0.03)
    assert (len(train_text), len(val_text)) == (485_000, 15_000)
    assert train_text[:20_011] == parts["train"] and val_text == draw_part(source, "val", 15_000)


# The comparison


def in_jax(truth, mix=lambda probabilities, tokens: probabilities):
    """The truth as a model, with a forward algorithm of its own; `mix` makes other probabilities of the true ones.

    Called as `objectives.causal_lm` calls a model: first for activations, here the tokens, and then for logits.
    """
    arcs = jnp.array(truth.arcs)

    def logits(tokens):
        def read(belief, column):
            belief = jnp.einsum("bi,bij->bj", belief, arcs[column])
            belief /= belief.sum(axis=1, keepdims=True)
            return belief, jnp.einsum("bj,vjk->bv", belief, arcs)

        start = jnp.tile(jnp.array(truth.stationary), (len(tokens), 1))
        probabilities = jax.lax.scan(read, start, tokens.T)[1].swapaxes(0, 1)
        return jnp.log(jnp.maximum(mix(probabilities, tokens), 1e-30))

    return lambda x, method, **_: x[..., None] if method == "activations" else logits(x[..., 0])


def evaluation(model):
    """The compiled step of an evaluation; model: params -> apply."""
    return jax.jit(lambda params, batch: paired(objectives.causal_lm)(model(params), batch))


def compared(truth, text, step, params=None, rows=29):
    """What a run would say of this model on this text. Padding is the truth's character 0, which is no matter."""
    tokens = windows(truth, text, 1)[:, 0].astype(np.int32)

    def floor(batch):
        return truth.nats(np.where(batch["is_token"], batch["tokens"], -1)).sum(axis=1)

    return measure(step, params, with_floor(lambda: eval_batches(tokens, 23, rows), floor)())


def noise(key, size):
    """Somewhat other odds: what a model that has learned well says."""

    def mix(probabilities, tokens):
        noisy = probabilities * jnp.exp(size * jax.random.normal(key, probabilities.shape))
        return noisy / noisy.sum(axis=-1, keepdims=True)

    return mix


def sees_targets(share):
    """The truth with a part of a model that knows what comes, as one whose mask is off by one does."""

    def mix(probabilities, tokens):
        seen = jax.nn.one_hot(jnp.roll(tokens, -1, axis=1), probabilities.shape[-1])
        return (1 - share) * probabilities + share * seen

    return mix


@each_source
def test_twenty_honest_models_on_twenty_texts_raise_no_alarm(source):
    truth = known_truth(source)
    step = evaluation(lambda key: in_jax(truth, noise(key, 0.1)))
    for seed in range(20):
        values = compared(truth, truth.draw(2_003, seed + 100), step, jax.random.key(seed))
        assert not values["leak"], values
        assert -3 * values["gap_error"] < values["gap"] < 0.03


@each_source
def test_the_truth_itself_is_at_the_floor_and_no_leak(source):
    truth = known_truth(source)
    values = compared(truth, truth.draw(5_003, 7), evaluation(lambda _: in_jax(truth)))
    assert abs(values["gap"]) < 1e-5 and not values["leak"]


@each_source
def test_a_model_that_sees_a_thousandth_of_the_target_is_reported(source):
    truth = known_truth(source)
    values = compared(truth, truth.draw(20_011, 8), evaluation(lambda _: in_jax(truth, sees_targets(0.001))))
    assert values["leak"] and -0.1 < values["gap"] < -3 * values["gap_error"] < 0


def test_the_gap_and_its_error_are_those_of_the_differences_of_windows_whatever_the_batches():
    truth = known_truth("hmm")
    text, step = truth.draw(1_009, 9), evaluation(lambda _: in_jax(truth, lambda p, _: 0.7 * p + 0.3 / p.shape[-1]))
    results = [compared(truth, text, step, rows=rows) for rows in (1, 7, 53)]
    symbols = np.append(windows(truth, text, 1)[:, 0], [-1] * 5)  # 1,008 targets: 43 windows of 23 and one of 19
    rows = np.stack([symbols[i : i + 24] for i in range(0, 1_009, 23)])
    true = truth.nats(rows)
    chosen = np.where(rows[:, 1:] >= 0, 0.7 * np.exp(-true) + 0.3 / len(truth.characters), 1.0)
    differences = (-np.log(chosen) - true).sum(axis=1)
    expected = {"floor": true.sum() / 1_008, "gap": differences.sum() / 1_008,
                "gap_error": differences.std(ddof=1) * 44**0.5 / 1_008}  # fmt: skip
    for values in results:
        np.testing.assert_allclose([values[name] for name in expected], list(expected.values()), rtol=1e-3)
        assert values["loss"] == pytest.approx(values["floor"] + values["gap"]) and not values["leak"]


def test_one_window_is_too_little_to_call_anything_a_leak():
    values = compare({"loss": 1.0, "floor": 9.0, "gap_squares": 64.0, "windows": 1.0}, 7.0)
    assert math.isnan(values["gap_error"]) and not values["leak"]


# In a run


def config_of(source, **changes):
    config = default.get_config()
    settings = dict(
        data__source=source, data__val_fraction=0.01, model__max_len=23, model__num_layers=1, model__d_model=20,
        model__num_heads=2, train__batch_size=8, train__num_steps=20, train__eval_every=10,
        train__tensorboard=False,
    )  # fmt: skip
    for name, value in (settings | changes).items():
        section, field = name.split("__")
        config[section][field] = value
    return config


@each_source
def test_a_run_of_20_steps_writes_floor_and_gap_and_so_does_its_evaluation(source, tmp_path, capsys):
    workdir = train(config_of(source, train__tensorboard=True), tmp_path / "run")
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
    said = capsys.readouterr().out
    assert f"floor {events[1]['floor']:.4f}  gap {events[1]['gap']:.4f}" in said and "leak?" not in said
    config, run = Config.from_dict(tj.read_meta(workdir)["config"]), tj.load(workdir, "latest")
    again, test, learned = (causal_lm(run, config, split, Options()).values for split in ("val", "test", "train"))
    assert again["loss"] == pytest.approx(events[1]["loss"], rel=1e-5)
    assert again["floor"] == pytest.approx(events[1]["floor"], rel=1e-6)
    assert test["floor"] != again["floor"] and test["gap"] > 0
    assert "floor" not in learned  # what was learned by heart may be below it


def test_targets_that_are_not_shifted_are_a_leak_that_is_loud(monkeypatch, tmp_path, capsys):
    def unshifted(apply, batch, deterministic=True):
        tokens, is_target = batch["tokens"][:, :-1], batch["is_token"][:, :-1]
        x = apply(tokens, deterministic=deterministic, method="activations")
        nats = objectives.cross_entropy(lambda x: apply(x, method="logits"), x, tokens)
        return jnp.sum(jnp.where(is_target, nats, 0.0)), jnp.sum(is_target, dtype=jnp.float32), {}

    monkeypatch.setattr(objectives, "causal_lm", unshifted)
    config = config_of("hmm", train__num_steps=60, train__eval_every=30, optimizer__peak_lr=3e-2)
    workdir = train(config, tmp_path / "run")
    last = read_metrics(workdir / "metrics.jsonl")[-1]
    assert last["leak"] is True and last["gap"] < -0.5
    assert "leak? the loss is" in capsys.readouterr().out
    assert json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["leak"] is True


def test_where_tokens_are_characters_the_floor_is_the_same_and_else_there_is_none():
    text = draw_part("grammar", "val", 503)
    floors = []
    for tokenizer in (train_tokenizer("char", 0, text), ByteTokenizer()):
        batch = next(eval_batches(tokenizer.encode(text), 31, 17))
        floors.append(floor_of("grammar", tokenizer)(batch))
    np.testing.assert_array_equal(*floors)
    assert floors[0].shape == (17,) and floors[0].min() > 0
    assert floor_of("grammar", train_tokenizer("bpe", 300, text)) is None
    assert floor_of("text", ByteTokenizer()) is None

"""Sources of known entropy: their probabilities equal brute force, and their splits are independent."""

import functools
import itertools
import math

import numpy as np
import pytest
from helpers.known_texts import windows
from helpers.text_files import parts_of

from train.config import DataConfig
from train.data.entropy import TRUTHS, Grammar, draw_part, hidden_markov_model, known_truth, markov_chain

RNG = np.random.default_rng(0)
TINY = Grammar({"1": 0.6, "x": 0.4}, {"+": 0.7, "*": 0.3}, {"()": 0.8, "[]": 0.2}, (0.2, 0.1), (0.3, 0.0), 0.1)
SHORT = Grammar({"1": 0.6, "x": 0.4}, {"+": 1.0}, {"()": 0.8, "[]": 0.2}, (0.05, 0.03), (0.2, 0.0), 0.03)

each_source = pytest.mark.parametrize("source", TRUTHS)


def stochastic(*shape, concentration=0.5):
    return RNG.dirichlet(np.full(shape[-1], concentration), size=shape[:-1])


# Entropy floors equal brute force


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

    def expression(text, depth):  # the remaining text, and the probability
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


def test_the_floor_within_a_text_of_the_grammar_sums_over_all_lines_and_starts():
    def expressions(depth, length):  # all with at most `length` characters, and their probabilities
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
    assert (
        len(dict(lines)) == len(lines) and 0.9998 < sum(p for _, p in lines) < 1
    )  # unambiguous; other lines are longer

    @functools.cache
    def begins(text):  # the probability that a text starting with a line begins like this
        return sum(
            p * (begins(text[len(line) :]) if len(line) < len(text) else 1.0)
            for line, p in lines
            if text.startswith(line) or line.startswith(text)
        )

    def inside(text):  # the same, starting at any position of any line
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


# Properties of the true distributions


@each_source
def test_true_probabilities_sum_to_1_and_no_drawn_text_is_impossible(source):
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
def test_a_text_begins_as_any_window_of_it_does(source):
    truth = known_truth(source)
    begins = (
        np.bincount(
            [truth.characters.index(truth.draw(1, seed)) for seed in range(2_003)], minlength=len(truth.characters)
        )
        / 2_003
    )
    share = np.einsum("i,vij->v", truth.stationary, truth.arcs)
    assert np.abs(begins - share).max() < 5 * (share.max() / 2_003) ** 0.5


@each_source
def test_splits_are_drawn_separately_and_have_nothing_in_common(source):
    parts = {part: draw_part(source, part, 20_011) for part in ("train", "val", "test")}
    for part, text in parts.items():
        assert draw_part(source, part, 503) == text[:503]  # whatever the length of the others
        for other in set(parts) - {part}:
            assert not {text[i : i + 40] for i in range(0, 20_011 - 40)} & {
                parts[other][i : i + 40] for i in range(0, 20_011 - 40, 40)
            }
    train_text, val_text = parts_of(DataConfig(source=source, val_fraction=0.03))
    assert (len(train_text), len(val_text)) == (485_000, 15_000)
    assert train_text[:20_011] == parts["train"] and val_text == draw_part(source, "val", 15_000)

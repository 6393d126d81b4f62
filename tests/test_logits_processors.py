"""Logits processors: each one against a slow obvious twin over lists, alone, in sampling and in beam search."""

import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.beams import PROMPTS, assert_best, next_log_probs, penalized, random_table, search_beams

from transformer_jax import sampling
from transformer_jax.errors import UserError
from transformer_jax.sampling import LOGITS_PROCESSORS, init_states
from transformer_jax.sampling.logits_processors import RULED_OUT, apply_processors
from transformer_jax.sampling.top_k import is_top_k, largest

EOS, V, MAX_NEW = 1, 5, 3
BYTES, PATTERN = [b"a", b"", b"b", b"ab", b"c"], "(ab)*c?b?"


def softmax(x):
    return [p / sum(map(math.exp, x)) for p in map(math.exp, x)]


def only(x, is_allowed):
    return [value if is_allowed(token) else -math.inf for token, value in enumerate(x)]


def smallest_set(x, rank, p):
    """Keep the first tokens by rank that together reach probability p."""
    kept, total = set(), 0.0
    for token in sorted(range(V), key=lambda token: (rank[token], token)):
        if kept and total >= p:
            break
        kept.add(token)
        total += softmax(x)[token]
    return only(x, kept.__contains__)


def top_k(x, text, num_prompt, room):
    return only(x, sorted(range(V), key=lambda token: (-x[token], token))[:2].__contains__)


def typical(x, text, num_prompt, room):
    surprise = [-math.log(p) if p else math.inf for p in softmax(x)]
    entropy = sum(p * s for p, s in zip(softmax(x), surprise, strict=True) if p)
    return smallest_set(x, [round(abs(s - entropy), 6) for s in surprise], 0.55)


def repetition(x, text, num_prompt, room):
    return [(v / 1.7 if v > 0 else v * 1.7) if t in text else v for t, v in enumerate(x)]


def no_repeat(x, text, num_prompt, room):
    return only(x, lambda token: (text[-1], token) not in itertools.pairwise(text))


def bad_words(x, text, num_prompt, room):
    return only(x, lambda token: all(tuple([*text, token][-len(word) :]) != word for word in ((3,), (0, 4), (2, 0, 0))))


def spelled(tokens):
    return b"".join(BYTES[token] for token in tokens).decode()


@functools.cache
def can_match(tokens, room):
    return re.fullmatch(PATTERN, spelled(tokens)) is not None or (
        room > 0 and any(can_match((*tokens, token), room - 1) for token in range(V) if BYTES[token])
    )


def constraint(x, text, num_prompt, room):
    new = tuple(text[num_prompt:])
    return only(x, lambda t: can_match((*new, t), room - 1) if BYTES[t] else can_match(new, 0))


CASES = {  # name: a processor, and its twin (logits, text so far, prompt length, tokens that still fit) -> logits
    "temperature": (sampling.Temperature(0.7), lambda x, *_: [v / 0.7 for v in x]),
    "top_k": (sampling.TopK(2), top_k),
    "top_p": (sampling.TopP(0.61), lambda x, *_: smallest_set(x, [-v for v in x], 0.61)),
    "min_p": (sampling.MinP(0.3), lambda x, *_: only(x, lambda t: softmax(x)[t] >= 0.3 * max(softmax(x)))),
    "typical": (sampling.TypicalP(0.55), typical),
    "logit_bias": (sampling.LogitBias((2, 4), (1.5, -2.0)), lambda x, *_: [*x[:2], x[2] + 1.5, x[3], x[4] - 2]),
    "renormalize": (sampling.Renormalize(), lambda x, *_: [v - math.log(sum(map(math.exp, x))) for v in x]),
    "custom": (
        sampling.Custom(lambda x, tokens, lengths: x.at[:, 2].add(-0.5 * lengths)),
        lambda x, text, *_: [*x[:2], x[2] - 0.5 * len(text), *x[3:]],
    ),
    "repetition_penalty": (sampling.RepetitionPenalty(1.7), repetition),
    "presence_penalty": (
        sampling.PresencePenalty(0.8),
        lambda x, text, num_prompt, _: [v - 0.8 * (t in text[num_prompt:]) for t, v in enumerate(x)],
    ),
    "frequency_penalty": (
        sampling.FrequencyPenalty(0.6),
        lambda x, text, num_prompt, _: [v - 0.6 * text[num_prompt:].count(t) for t, v in enumerate(x)],
    ),
    "no_repeat": (sampling.NoRepeatNgram(2), no_repeat),
    "bad_words": (sampling.BadWords(((3,), (0, 4), (2, 0, 0))), bad_words),
    "force_first": (
        sampling.ForceFirst(4),
        lambda x, text, num_prompt, _: only([0.0] * V, {4}.__contains__) if len(text) == num_prompt else x,
    ),
    "force_last": (
        sampling.ForceLast(EOS),
        lambda x, text, num_prompt, room: only([0.0] * V, {EOS}.__contains__) if room == 1 else x,
    ),
    "suppress": (sampling.Suppress((2, 4)), lambda x, *_: only(x, {0, 1, 3}.__contains__)),
    "suppress_first": (
        sampling.SuppressFirst((EOS, 3), 1),
        lambda x, text, num_prompt, _: only(x, {0, 2, 4}.__contains__) if len(text) == num_prompt + 1 else x,
    ),
    "min_length": (
        sampling.MinLength(2, (EOS,)),
        lambda x, text, num_prompt, _: only(x, {0, 2, 3, 4}.__contains__) if len(text) - num_prompt < 2 else x,
    ),
    "constraint": (sampling.matching(PATTERN, BYTES, (EOS,)), constraint),
}
MORE = CASES | {
    "no_repeat of one": (sampling.NoRepeatNgram(1), lambda x, text, *_: only(x, lambda token: token not in text)),
    "no_repeat longer than the text": (sampling.NoRepeatNgram(13), lambda x, *_: x),
    "min_length with the prompt": (
        sampling.MinLength(4, (EOS,), counts_prompt=True),
        lambda x, text, *_: only(x, {0, 2, 3, 4}.__contains__) if len(text) < 4 else x,
    ),
}
cases = pytest.mark.parametrize("name", CASES)
call = jax.jit(apply_processors)


def test_every_processor_has_a_twin_here():
    assert CASES.keys() == LOGITS_PROCESSORS.keys()
    assert all(type(CASES[name][0]) is LOGITS_PROCESSORS[name] for name in LOGITS_PROCESSORS)


@pytest.mark.parametrize("name", MORE)
def test_a_processor_equals_its_twin_token_by_token(name):
    processor, twin = MORE[name]
    random, rows = np.random.default_rng(3), 53
    num_prompt = random.integers(1, 8, rows)
    tokens = random.integers(0, V, (rows, 7 + MAX_NEW)).astype(np.int32)  # arbitrary after a row's length
    states = init_states((processor,), tokens, jnp.array(num_prompt, jnp.int32), MAX_NEW)
    for i in range(MAX_NEW):
        logits = random.integers(-3, 4, (rows, V)).astype(np.float32)  # ties are common
        out, states = call((processor,), logits, tokens, jnp.array(num_prompt + i, jnp.int32), states)
        out = np.asarray(out)
        assert np.all(np.isfinite(out))
        for row in range(rows):
            text = tokens[row, : num_prompt[row] + i].tolist()
            if name == "constraint" and not can_match(tuple(text[num_prompt[row] :]), MAX_NEW - i):
                continue  # the constraint does not allow such a text
            expected = np.array(twin(logits[row].tolist(), text, num_prompt[row], MAX_NEW - i))
            np.testing.assert_array_equal(out[row] <= RULED_OUT, expected == -np.inf)
            is_possible = expected > -np.inf
            np.testing.assert_allclose(out[row][is_possible], expected[is_possible], rtol=1e-5, atol=1e-5)


@cases
def test_a_token_ruled_out_as_finfo_min_or_minus_infinity_stays_ruled_out(name):
    processor = CASES[name][0]
    tokens, lengths = jnp.array([[0, 2, 0], [4, 3, 3]], jnp.int32), jnp.array([2, 1], jnp.int32)
    states = init_states((processor,), tokens, lengths, 2)
    for value in (-np.inf, RULED_OUT):
        logits = np.array([[value, 1.0, value, -2.0, 0.5], [value] * 5], np.float32)
        out = np.asarray(call((processor,), logits, tokens, lengths, states)[0])
        forced = 4 if name == "force_first" else None
        for row, out_row in zip(logits, out, strict=True):
            assert all(out_row[t] == RULED_OUT for t in range(V) if row[t] <= RULED_OUT and t != forced)


@cases
def test_a_row_does_not_depend_on_its_batch(name):
    processor, random = CASES[name][0], np.random.default_rng(5)
    tokens, lengths = random.integers(0, V, (7, 11)).astype(np.int32), jnp.arange(3, 10, dtype=jnp.int32)
    logits = random.normal(size=(7, V)).astype(np.float32)
    together, _ = call((processor,), logits, tokens, lengths, init_states((processor,), tokens, lengths, MAX_NEW))
    states = init_states((processor,), tokens[4:5], lengths[4:5], MAX_NEW)
    alone, _ = call((processor,), logits[4:5], tokens[4:5], lengths[4:5], states)
    np.testing.assert_allclose(np.asarray(together)[4:5], alone, rtol=1e-6)


def test_min_p_of_1_keeps_all_tokens_that_tie_for_the_most_likely():
    logits = jnp.array([[2.0, 2.0, 1.0, 0.0, 2.0], [0.0, -1.0, 3.0, 0.5, 2.5]])
    out, _ = apply_processors(
        (sampling.MinP(1.0),), logits, jnp.zeros((2, 3), jnp.int32), jnp.ones(2, jnp.int32), ((),)
    )
    assert (out > RULED_OUT).tolist() == [[True, True, False, False, True], [False, False, True, False, False]]


def all_hypotheses(prompt, twin):
    """Every hypothesis after `prompt`: {tokens: sum of the log-probabilities after the twin}."""
    hypotheses, open_beams = {}, {(): 0.0}
    for n in range(1, MAX_NEW + 1):
        longer = {}
        for tokens, total in open_beams.items():
            text = (*prompt, *tokens)
            log_probs = twin(next_log_probs(V, text).tolist(), list(text), len(prompt), MAX_NEW + 1 - n)
            longer |= {(*tokens, token): total + x for token, x in enumerate(log_probs) if x > -math.inf}
        hypotheses |= {tokens: total for tokens, total in longer.items() if tokens[-1] == EOS or n == MAX_NEW}
        open_beams = {tokens: total for tokens, total in longer.items() if tokens[-1] != EOS}
    return hypotheses


@cases
def test_a_search_with_beams_for_all_texts_is_exhaustive_with_every_processor(name):
    processor, twin = CASES[name]
    beams = search_beams(
        random_table(V),
        PROMPTS,
        processors=(processor,),
        max_new_tokens=MAX_NEW,
        num_beams=V**MAX_NEW,
        num_return=V**MAX_NEW,
        length_penalty=0.6,
    )
    for row, prompt in enumerate(PROMPTS):
        totals = all_hypotheses(prompt, twin)
        assert 1 <= len(totals) <= 85
        assert_best(beams, row, {tokens: penalized(x, len(tokens), 0.6, "gnmt") for tokens, x in totals.items()})


LOGITS = np.array([0.3, -0.7, 1.1, 0.0, 0.6], np.float32)


@cases
def test_two_sampled_tokens_have_the_distribution_of_the_twin(name):
    processor, twin = CASES[name]
    prompt, rows = [3, 2, 0], 5003
    keys = jax.random.split(jax.random.key(11), rows)
    step = jax.tree_util.Partial(lambda row, tokens, _, cache: (jnp.tile(row, (len(tokens), 1)), cache), LOGITS)
    tokens = np.tile(np.array(prompt, np.int32), (rows, 1))
    generated = sampling.generate(
        step,
        (),
        sampling.Prompts(tokens, tokens >= 0),
        sampling.SamplingParams(keys, (processor,)),
        sampling.DecodeSpec(2),
    )
    counts = np.zeros((V, V))
    has_two = np.asarray(generated.lengths) == 2  # without EOS ids a constraint may allow no second token
    np.add.at(counts, tuple(np.asarray(generated.tokens)[has_two].T), 1)
    expected = np.zeros((V, V))
    for first, p in enumerate(softmax(twin(LOGITS.tolist(), prompt, 3, 2))):
        after = twin(LOGITS.tolist(), [*prompt, first], 3, 1) if p else [-math.inf]
        if max(after) > -math.inf:
            expected[first] = rows * p * np.array(softmax(after))
    if name == "constraint":  # EOS does not end a row here
        without_eos = np.ix_([0, 2, 3, 4], [0, 2, 3, 4])
        expected, counts = expected[without_eos], counts[without_eos]
    assert np.all(counts[expected == 0] == 0)
    likely = expected >= 5
    rest = [[expected[~likely].sum()], [counts[~likely].sum()]] if expected[~likely].sum() > 5 else [[], []]
    expected, counts = (np.append(x[likely], rare) for x, rare in zip((expected, counts), rest, strict=True))
    chi_square, freedom = np.sum((counts - expected) ** 2 / expected), len(expected) - 1
    assert chi_square <= freedom + 4 * math.sqrt(2 * freedom) + 8  # exceeded less than once in ten thousand seeds


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: sampling.Temperature(math.nan), "temperature=nan: must be from 1e-6"),
        (lambda: sampling.Temperature(0.0), "temperature=0.0: must be from 1e-6"),
        (lambda: sampling.Temperature(math.inf), "temperature=inf: must be from 1e-6"),
        (lambda: sampling.TopK(0), "top_k=0: must be 1 or more"),
        (lambda: sampling.TopP(0.0), "top_p=0.0: must be above 0"),
        (lambda: sampling.TopP(math.nan), "top_p=nan: must be above 0"),
        (lambda: sampling.MinP(1.5), "min_p=1.5: must be above 0"),
        (lambda: sampling.TypicalP(0.0), "typical_p=0.0: must be above 0"),
        (lambda: sampling.LogitBias((-1,), (2.0,)), "ids=(-1,): must be token ids"),
        (lambda: sampling.LogitBias((1, 2), (2.0,)), "biases=(2.0,): must be 2 numbers"),
        (lambda: sampling.LogitBias((1,), (math.nan,)), "biases=(nan,): must be 1 numbers"),
        (lambda: sampling.RepetitionPenalty(0.0), "repetition_penalty=0.0: must be from"),
        (lambda: sampling.PresencePenalty(math.inf), "presence_penalty=inf: must be from"),
        (lambda: sampling.FrequencyPenalty(math.nan), "frequency_penalty=nan: must be from"),
        (lambda: sampling.NoRepeatNgram(0), "no_repeat_ngram_size=0: must be from 1 to 100"),
        (lambda: sampling.BadWords(((2,), ())), "bad_words=((2,), ()): a word must have a token"),
        (lambda: sampling.Suppress((-1,)), "ids=(-1,): must be token ids"),
        (lambda: sampling.MinLength(-1, (2,)), "min_length=-1: must be 0 or more"),
    ],
)
def test_a_processor_refuses_invalid_fields_in_one_line(make, message):
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_other_numbers_of_the_same_processors_compile_nothing():
    makes = {
        "temperature": lambda x: sampling.Temperature(1 + x),
        "top_k": lambda x: sampling.TopK(int(1 + 1000 * x)),
        "top_p": sampling.TopP,
        "min_p": sampling.MinP,
        "typical": sampling.TypicalP,
        "logit_bias": lambda x: sampling.LogitBias((int(4 * x), 3), (x, -x)),
        "repetition_penalty": lambda x: sampling.RepetitionPenalty(1 + x),
        "presence_penalty": sampling.PresencePenalty,
        "frequency_penalty": sampling.FrequencyPenalty,
        "bad_words": lambda x: sampling.BadWords(((int(4 * x),), (2, int(4 * x)))),
        "force_first": lambda x: sampling.ForceFirst(int(4 * x)),
        "force_last": lambda x: sampling.ForceLast(int(4 * x)),
        "suppress": lambda x: sampling.Suppress((int(4 * x),)),
        "suppress_first": lambda x: sampling.SuppressFirst((int(4 * x),), int(3 * x)),
        "min_length": lambda x: sampling.MinLength(int(3 * x), (int(4 * x),)),
    }
    assert {*LOGITS_PROCESSORS} - {*makes} == {"custom", "renormalize", "no_repeat", "constraint"}
    tokens, lengths = jnp.zeros((2, 3), jnp.int32), jnp.ones(2, jnp.int32)
    traced = []

    @jax.jit
    def count_traces(processors, states):
        traced.append(1)
        return apply_processors(processors, jnp.ones((2, V)), tokens, lengths, states)

    for x in (0.25, 0.5, 0.75, 1):
        processors = tuple(make(x) for make in makes.values())
        count_traces(processors, init_states(processors, tokens, lengths, MAX_NEW))
    assert len(traced) == 1


@pytest.mark.parametrize("shape", [(3, 7), (2, 257), (3, 1031)])
def test_a_traced_k_keeps_the_tokens_of_a_full_stable_sort(shape):
    rng, jitted = np.random.default_rng(0), jax.jit(is_top_k)
    for x in (rng.standard_normal(shape), rng.integers(-1, 2, shape), np.full(shape, RULED_OUT)):
        x = (x + 0.0).astype(np.float32)  # integers have no -0, which comes after 0 in the order of bits
        order = np.argsort(-x, axis=1, kind="stable")
        for k in (1, 5, 64, 65, 256, 257, 700, shape[1], shape[1] + 1):
            expected = np.zeros(shape, bool)
            np.put_along_axis(expected, order[:, :k], True, axis=1)
            np.testing.assert_array_equal(jitted(x, k), expected)


@pytest.mark.parametrize("shape, k", [((3, 1031), 1), ((5, 1031), 4), ((2, 257), 3), ((2, 128), 5), ((3, 7), 7)])
def test_largest_equals_a_full_stable_sort(shape, k):
    rng, jitted = np.random.default_rng(0), jax.jit(largest, static_argnums=1)
    for x in (rng.standard_normal(shape), rng.integers(0, 3, shape), np.full(shape, -np.inf)):
        values, indices = jitted(jnp.array(x, jnp.float32), k)
        expected = np.argsort(-x, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(indices, expected)
        np.testing.assert_array_equal(values, np.take_along_axis(x, expected, axis=1).astype(np.float32))

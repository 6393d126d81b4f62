import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import random_like

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.models import GPT
from transformer_jax.nn.kv_cache import make_cache
from transformer_jax.sampling import generate
from transformer_jax.sampling.beam_search import LENGTH_PENALTIES, Beams, beam_search

EOS, PAD, NUM_HASHES = 1, 99, 10007  # no toy model has a token 99
TEXTS = ((0,), (1, 0), (0, 0, 1))


class History(NamedTuple):
    """The toy models' cache: every token so far, so that a beam with another's cache has other logits."""

    texts: jax.Array  # [B, S]; -1: padding, or not written yet
    num_written: jax.Array  # a scalar, which a reorder leaves alone


def remember(history, tokens, is_token):
    texts = jax.lax.dynamic_update_slice(history.texts, jnp.where(is_token, tokens, -1), (0, history.num_written))
    return History(texts, history.num_written + tokens.shape[1])


def hash_step(table, tokens, is_token, history):
    """A hash of all tokens in their order picks the row of the table; NaN if the cache was too small."""
    history = remember(history, tokens, is_token)
    number = jnp.zeros(len(tokens), jnp.int32)
    for token in history.texts.T:
        number = jnp.where(token < 0, number, (number * 31 + token + 1) % NUM_HASHES)
    return jnp.where(history.num_written > history.texts.shape[1], jnp.nan, table[number]), history


def first_token_step(table, tokens, is_token, history):
    """The same logits all the way, those of the prompt's first token."""
    history = remember(history, tokens, is_token)
    return jnp.where(history.num_written > history.texts.shape[1], jnp.nan, table[history.texts[:, 0]]), history


@functools.cache
def random_table(V, scale=1.5):
    return (scale * np.random.default_rng(V).normal(size=(NUM_HASHES, V))).astype(np.float32)


def padded(texts):
    """Prompts with padding on the left, and every other one on the right."""
    T = max(map(len, texts))
    tokens, is_token = np.zeros((len(texts), T), np.int32), np.zeros((len(texts), T), bool)
    for row, text in enumerate(texts):
        at = slice(0, len(text)) if row % 2 else slice(T - len(text), T)
        tokens[row, at], is_token[row, at] = text, True
    return tokens, is_token


def searched(table, texts, step=hash_step, missing_slots=0, **kwargs):
    tokens, is_token = padded(texts)
    capacity = tokens.shape[1] + kwargs["max_new_tokens"] - 1 - missing_slots
    history = History(jnp.full((len(texts), capacity), -1), jnp.int32(0))
    kwargs = {"eos_ids": (EOS,), "pad_id": PAD} | kwargs
    found = beam_search(jax.tree_util.Partial(step, jnp.array(table)), history, tokens, is_token, **kwargs)
    shape = (len(texts), kwargs.get("num_return", 1))
    assert found.tokens.shape == (*shape, kwargs["max_new_tokens"]) and found.scores.shape == shape
    assert found.lengths.shape == shape and found.scores.dtype == jnp.float32
    assert found.tokens.dtype == found.lengths.dtype == jnp.int32
    return Beams(*map(np.asarray, found))


@functools.cache
def log_probs_after(V, text):
    """Of every next token in `random_table(V)`, float64."""
    number = functools.reduce(lambda number, token: (number * 31 + token + 1) % NUM_HASHES, text, 0)
    logits = random_table(V)[number].astype(np.float64)
    return logits - np.log(np.sum(np.exp(logits)))


def log_prob(V, text, tokens):
    return sum(log_probs_after(V, (*text, *tokens[:i]))[token] for i, token in enumerate(tokens))


def penalized(log_prob, n, alpha, penalty):
    return log_prob / {"gnmt": (5 + n) ** alpha / 6**alpha, "mean": float(n) ** alpha}[penalty]


@functools.cache
def everything(V, text, max_new_tokens):
    """Every hypothesis after `text` with its log-probability."""
    found, open_beams = {}, {(): 0.0}
    for n in range(1, max_new_tokens + 1):
        longer = {
            (*tokens, token): total + added
            for tokens, total in open_beams.items()
            for token, added in enumerate(log_probs_after(V, (*text, *tokens)))
        }
        found |= {t: total for t, total in longer.items() if t[-1] == EOS or n == max_new_tokens}
        open_beams = {t: total for t, total in longer.items() if t[-1] != EOS}
    return found


def assert_best(found, row, scores_of):
    """`found` of a row is the head of the ranking `scores_of` {tokens: score}; nothing follows its end."""
    best = sorted(scores_of.values(), reverse=True) + [-np.inf] * len(found.scores[row])
    np.testing.assert_allclose(found.scores[row], best[: len(found.scores[row])], rtol=1e-5, atol=1e-5)
    seen = set()
    for tokens, score, length in zip(found.tokens[row], found.scores[row], found.lengths[row], strict=True):
        assert np.all(tokens[length:] == PAD)
        text = tuple(tokens[:length].tolist())
        if score == -np.inf:
            assert length == 0
            continue
        assert text not in seen  # and by this, whatever the ties, the hypotheses are the best ones
        seen.add(text)
        np.testing.assert_allclose(score, scores_of[text], rtol=1e-5, atol=1e-5)


def assert_exhaustive(V, max_new_tokens, num_beams, alpha, penalty):
    found = searched(
        random_table(V),
        TEXTS,
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        num_return=num_beams,
        length_penalty=alpha,
        length_normalization=penalty,
    )
    for row, text in enumerate(TEXTS):
        totals = everything(V, text, max_new_tokens)
        assert_best(found, row, {t: penalized(total, len(t), alpha, penalty) for t, total in totals.items()})


@pytest.mark.parametrize(
    "V, max_new_tokens, alpha, penalty",
    [
        (3, 5, 0.0, "gnmt"),
        (3, 5, 0.6, "gnmt"),
        (3, 5, 1.0, "gnmt"),
        (3, 5, -0.5, "gnmt"),
        (3, 5, 0.0, "mean"),
        (3, 5, 0.6, "mean"),
        (3, 5, 1.0, "mean"),
        (3, 5, -0.5, "mean"),
        (2, 5, 0.0, "gnmt"),
        (2, 5, 0.6, "mean"),
        (5, 4, -0.5, "gnmt"),
        (5, 3, 1.0, "mean"),
    ],
)
def test_with_more_beams_than_hypotheses_the_search_is_exhaustive_and_the_rest_is_empty(
    V, max_new_tokens, alpha, penalty
):
    num = len(everything(V, TEXTS[0], max_new_tokens))
    assert num == sum((V - 1) ** n for n in range(max_new_tokens)) + (V - 1) ** max_new_tokens
    assert_exhaustive(V, max_new_tokens, num + 2, alpha, penalty)


@pytest.mark.parametrize("V, max_new_tokens", [(2, 5), (3, 4), (5, 1), (5, 5)])
def test_as_many_beams_as_unended_texts_are_enough(V, max_new_tokens):
    assert_exhaustive(V, max_new_tokens, (V - 1) ** max_new_tokens, 0.6, "gnmt")


def plain_search(V, text, num_beams, max_new_tokens, alpha, penalty):
    """Beam search over lists, to the very end: no early stop and no pool. {tokens: score}, all that ever ended."""
    ended, open_beams = {}, [((), 0.0)]
    for _ in range(max_new_tokens):
        candidates = []
        for tokens, total in open_beams:
            after = log_probs_after(V, (*text, *tokens))
            ended[(*tokens, EOS)] = total + after[EOS]
            candidates += [((*tokens, token), total + after[token]) for token in range(V) if token != EOS]
        open_beams = sorted(candidates, key=lambda beam: -beam[1])[:num_beams]
    return {t: penalized(total, len(t), alpha, penalty) for t, total in (ended | dict(open_beams)).items()}


MANY = [tuple(text) for text in np.random.default_rng(3).integers(0, 5, (53, 2)).tolist()]


@pytest.mark.parametrize(
    "num_beams, alpha, penalty",
    [(1, 0.0, "gnmt"), (2, 0.6, "gnmt"), (3, 1.0, "mean"), (1, -1.0, "mean"), (2, 3.0, "gnmt")],
)
def test_a_row_finds_in_a_batch_what_it_finds_alone_and_the_early_stop_changes_nothing(num_beams, alpha, penalty):
    search = functools.partial(
        searched,
        random_table(5),
        num_beams=num_beams,
        num_return=num_beams,
        max_new_tokens=7,
        length_penalty=alpha,
        length_normalization=penalty,
    )
    together = search(MANY)
    for row, text in enumerate(MANY):
        alone = search([text])  # stops by itself
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
        np.testing.assert_array_equal(alone.lengths[0], together.lengths[row])
        np.testing.assert_allclose(alone.scores[0], together.scores[row], rtol=1e-6)
        assert_best(alone, 0, plain_search(5, text, num_beams, 7, alpha, penalty))


@pytest.mark.parametrize("alpha, penalty", [(0.6, "gnmt"), (-0.5, "mean")])
def test_scores_are_the_penalized_log_probabilities_of_the_tokens_and_padding_follows_the_end(alpha, penalty):
    found = searched(
        random_table(7),
        TEXTS,
        num_beams=5,
        num_return=3,
        max_new_tokens=11,
        length_penalty=alpha,
        length_normalization=penalty,
    )
    assert np.any(found.lengths < 11)
    for row, text in enumerate(TEXTS):
        assert np.all(np.diff(found.scores[row]) <= 0)
        for tokens, score, n in zip(found.tokens[row], found.scores[row], found.lengths[row], strict=True):
            assert np.all(tokens[n:] == PAD) and np.all(tokens[:n] < 7) and EOS not in tokens[: n - 1]
            assert n == 11 or tokens[n - 1] == EOS
            expected = penalized(log_prob(7, text, tokens[:n].tolist()), n, alpha, penalty)
            np.testing.assert_allclose(score, expected, rtol=1e-5)


def greedily(table, texts, max_new_tokens, eos_ids):
    tokens, is_token = padded(texts)
    history = History(jnp.full((len(texts), tokens.shape[1] + max_new_tokens - 1), -1), jnp.int32(0))
    keys = jax.random.split(jax.random.key(0), len(texts))
    step = jax.tree_util.Partial(hash_step, jnp.array(table))
    return np.asarray(
        generate(
            step,
            history,
            tokens,
            is_token,
            keys,
            max_new_tokens=max_new_tokens,
            choice="greedy",
            eos_ids=eos_ids,
            pad_id=PAD,
        ).tokens
    )


def test_one_beam_without_an_end_is_greedy():
    found = searched(random_table(5), MANY, num_beams=1, max_new_tokens=7, length_penalty=0.0, eos_ids=())
    np.testing.assert_array_equal(found.tokens[:, 0], greedily(random_table(5), MANY, 7, ()))
    assert np.all(found.lengths == 7)


@pytest.mark.parametrize("alpha, penalty", [(0.0, "gnmt"), (1.0, "mean"), (-0.5, "gnmt")])
def test_one_beam_is_never_worse_than_greedy(alpha, penalty):
    # Nor always equal: it also ends where EOS is not the likeliest token, and keeps what is best of all that.
    found = searched(
        random_table(5), MANY, num_beams=1, max_new_tokens=7, length_penalty=alpha, length_normalization=penalty
    )
    greedy = greedily(random_table(5), MANY, 7, (EOS,))
    for score, text, tokens in zip(found.scores[:, 0], MANY, greedy, strict=True):
        tokens = tokens[tokens != PAD].tolist()
        assert score >= penalized(log_prob(5, text, tokens), len(tokens), alpha, penalty) - 1e-5
    assert np.any(found.tokens[:, 0] != greedy)


STEADY = np.log(np.array([[0.05, 0.9, 0.05], [0.55, 0.35, 0.1], [0.5, 0.0001, 0.4999]], np.float32))


@pytest.mark.parametrize(
    "first, alpha, num_steps",
    [
        (0, 0.0, 2),  # two hypotheses, 0.9 and 0.05 * 0.9, then: 0.05 * 0.05 is less already
        (0, 1.0, 6),  # log(0.05 * 0.9) / 2 = -1.55 against n log(0.05) / 11: as if the other 11 - n were free
        (1, -1.0, 2),  # 2 log(0.55 * 0.35) = -3.30 against 3 log(0.55 * 0.55) = -3.59: as if only the third were free
    ],
)
def test_the_loop_stops_as_soon_as_no_open_beam_can_win(first, alpha, num_steps):
    calls = []

    def counting_step(*args):
        jax.debug.callback(lambda: calls.append(1))
        return first_token_step(*args)

    found = searched(
        STEADY,
        ((first,), (first,)),
        counting_step,
        num_beams=2,
        num_return=2,
        max_new_tokens=11,
        length_penalty=alpha,
        length_normalization="mean",
    )
    jax.effects_barrier()
    assert found.tokens[:, :, :3].tolist() == 2 * [[[EOS, PAD, PAD], [0, EOS, PAD]]]
    assert len(calls) == num_steps


def test_a_row_whose_logits_are_nan_has_a_nan_score_and_no_tokens_and_the_others_are_as_ever():
    table = STEADY.copy()
    table[1, 2] = np.nan
    texts, kwargs = ((0,), (1,), (2,)), dict(num_beams=3, num_return=2, max_new_tokens=5)
    found, sound = (searched(t, texts, first_token_step, **kwargs) for t in (table, STEADY))
    assert np.all(np.isnan(found.scores[1])) and np.all(found.tokens[1] == PAD) and np.all(found.lengths[1] == 0)
    for ours, theirs in zip(found, sound, strict=True):
        np.testing.assert_array_equal(ours[[0, 2]], theirs[[0, 2]])


def test_in_a_cache_that_is_too_small_only_rows_done_before_have_a_score():
    kwargs = dict(step=first_token_step, num_beams=2, max_new_tokens=7, length_penalty=0.0)
    found, sound = searched(STEADY, ((2,), (0,)), missing_slots=1, **kwargs), searched(STEADY, ((2,), (0,)), **kwargs)
    assert np.isnan(found.scores[0, 0]) and np.all(found.tokens[0] == PAD) and np.all(np.isfinite(sound.scores))
    np.testing.assert_array_equal(found.tokens[1], sound.tokens[1])
    np.testing.assert_array_equal(found.scores[1], sound.scores[1])


@pytest.mark.parametrize("ruled_out", [-np.inf, np.finfo(np.float32).min], ids=["-inf", "finfo.min"])
def test_hypotheses_with_a_token_that_is_ruled_out_are_none(ruled_out):
    table = np.array([[0.0, 0.0, ruled_out], [ruled_out, 0.0, ruled_out]], np.float32)
    found = searched(
        table, ((0,), (1,)), first_token_step, num_beams=5, num_return=3, max_new_tokens=2, length_penalty=0.0
    )
    assert found.tokens.tolist() == [[[EOS, PAD], [0, EOS], [0, 0]], [[EOS, PAD], [PAD, PAD], [PAD, PAD]]]
    np.testing.assert_allclose(np.exp(found.scores), [[1 / 2, 1 / 4, 1 / 4], [1, 0, 0]], rtol=1e-6)


def test_of_equals_the_lower_index_wins_and_narrow_logits_are_normalized_in_float32():
    table = np.full((2, 3), 2.0)
    found = searched(
        jnp.array(table, jnp.bfloat16),
        ((0,), (1,)),
        first_token_step,
        num_beams=5,
        num_return=5,
        max_new_tokens=2,
        length_penalty=0.0,
    )
    assert found.tokens.tolist() == 2 * [[[EOS, PAD], [0, EOS], [2, EOS], [0, 0], [0, 2]]]
    np.testing.assert_allclose(found.scores, 2 * [[-math.log(3)] + 4 * [-2 * math.log(3)]], rtol=1e-6)


def test_over_a_cached_gpt_with_padded_prompts_it_equals_full_passes_over_every_continuation():
    V, max_new_tokens, texts = 5, 3, ((4,), (2, 0, 3), (3, 1))
    config = TransformerConfig(
        vocab_size=V,
        max_len=7,
        num_layers=2,
        d_model=13,
        num_heads=6,
        num_kv_heads=2,
        head_dim=4,
        d_ff=17,
        positions="rotary",
    )
    model = GPT(config)
    params = random_like(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, 3), int)), scale=0.7)
    tokens, is_token = padded(texts)
    step = jax.tree_util.Partial(functools.partial(model.apply, method="extend", last_only=True), params)
    cache = make_cache(config, len(texts), tokens.shape[1] + max_new_tokens - 1)
    found = Beams(
        *map(
            np.asarray,
            beam_search(
                step,
                cache,
                tokens,
                is_token,
                num_beams=89,
                num_return=89,
                max_new_tokens=max_new_tokens,
                eos_ids=(EOS,),
                pad_id=PAD,
                length_penalty=0.6,
            ),
        )
    )
    endings = list(itertools.product(range(V), repeat=max_new_tokens))
    for row, text in enumerate(texts):
        whole = np.zeros((len(endings), 6), int)  # what follows does not matter to a causal model
        whole[:, : len(text) + max_new_tokens] = [(*text, *ending) for ending in endings]
        log_probs, scores_of = np.asarray(jax.nn.log_softmax(jax.jit(model.apply)(params, whole))), {}
        for ending, of_ending in zip(endings, log_probs, strict=True):
            n = ending.index(EOS) + 1 if EOS in ending else max_new_tokens
            total = sum(of_ending[len(text) - 1 + i, ending[i]] for i in range(n))
            scores_of[ending[:n]] = penalized(total, n, 0.6, "gnmt")
        assert len(scores_of) == 85
        assert_best(found, row, scores_of)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"num_beams": 0}, "num_beams=0: must be at least 1."),
        ({"num_return": 0}, "num_return=0: must be from 1 to num_beams=3."),
        ({"num_return": 4}, "num_return=4: must be from 1 to num_beams=3."),
        ({"max_new_tokens": 0}, "max_new_tokens=0: must be at least 1."),
        ({"length_penalty": 4.5}, "length_penalty=4.5: must be from -4 to 4."),
        ({"length_penalty": math.nan}, "length_penalty=nan: must be from -4 to 4."),
        ({"length_normalization": "none"}, f"penalty='none': unknown. Choose one of: {', '.join(LENGTH_PENALTIES)}."),
    ],
    ids=str,
)
def test_what_has_no_meaning_is_refused(kwargs, message):
    with pytest.raises(UserError) as error:
        searched(STEADY, TEXTS, first_token_step, **{"num_beams": 3, "max_new_tokens": 2} | kwargs)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)

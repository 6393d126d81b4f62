"""Beam search with one EOS: exhaustive, against exact twins, early stopping, NaN, ties, a real GPT, errors."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import random_like
from helpers.beams import (
    EOS,
    MANY_PROMPTS,
    PAD,
    PROMPTS,
    STEADY_TABLE,
    History,
    all_hypotheses,
    assert_best,
    beam_search,
    first_token_step,
    hash_step,
    next_log_probs,
    padded,
    penalized,
    random_table,
    search_beams,
)

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.models import GPT
from transformer_jax.nn.kv_cache_kinds import make_cache
from transformer_jax.sampling import DecodeSpec, Prompts, SamplingParams, generate
from transformer_jax.sampling.beam_search import LENGTH_PENALTIES, Beams


def log_prob(V, prompt, tokens):
    return sum(next_log_probs(V, (*prompt, *tokens[:i]))[token] for i, token in enumerate(tokens))


def assert_exhaustive(V, max_new_tokens, num_beams, alpha, normalization):
    beams = search_beams(
        random_table(V),
        PROMPTS,
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        num_return=num_beams,
        length_penalty=alpha,
        length_normalization=normalization,
    )
    for row, prompt in enumerate(PROMPTS):
        totals = all_hypotheses(V, prompt, max_new_tokens)
        assert_best(beams, row, {t: penalized(total, len(t), alpha, normalization) for t, total in totals.items()})


@pytest.mark.parametrize(
    "V, max_new_tokens, alpha, normalization",
    [
        (3, 5, 0.0, "gnmt"),
        (3, 5, 0.6, "gnmt"),
        (3, 5, -0.5, "gnmt"),
        (3, 5, 1.0, "mean"),
        (3, 5, -0.5, "mean"),
        (2, 5, 0.6, "mean"),
        (5, 4, -0.5, "gnmt"),
        (5, 3, 1.0, "mean"),
    ],
)
def test_with_more_beams_than_hypotheses_all_are_found_and_the_rest_is_empty(V, max_new_tokens, alpha, normalization):
    num = len(all_hypotheses(V, PROMPTS[0], max_new_tokens))
    assert num == sum((V - 1) ** n for n in range(max_new_tokens)) + (V - 1) ** max_new_tokens
    assert_exhaustive(V, max_new_tokens, num + 2, alpha, normalization)


@pytest.mark.parametrize("V, max_new_tokens", [(2, 5), (3, 4), (5, 1), (5, 5)])
def test_as_many_beams_as_open_prefixes_are_enough_for_an_exhaustive_search(V, max_new_tokens):
    assert_exhaustive(V, max_new_tokens, (V - 1) ** max_new_tokens, 0.6, "gnmt")


def plain_search(V, prompt, num_beams, max_new_tokens, alpha, normalization):
    """Beam search over lists, without early stopping, that keeps all that ever ended: {tokens: score}."""
    ended, open_beams = {}, [((), 0.0)]
    for _ in range(max_new_tokens):
        candidates = []
        for tokens, total in open_beams:
            log_probs = next_log_probs(V, (*prompt, *tokens))
            ended[(*tokens, EOS)] = total + log_probs[EOS]
            candidates += [((*tokens, token), total + log_probs[token]) for token in range(V) if token != EOS]
        open_beams = sorted(candidates, key=lambda beam: -beam[1])[:num_beams]
    return {t: penalized(total, len(t), alpha, normalization) for t, total in (ended | dict(open_beams)).items()}


@pytest.mark.parametrize(
    "num_beams, alpha, normalization", [(1, 0.0, "gnmt"), (3, 1.0, "mean"), (1, -1.0, "mean"), (2, 3.0, "gnmt")]
)
def test_a_row_in_a_batch_equals_the_row_alone_and_early_stopping_changes_nothing(num_beams, alpha, normalization):
    search = functools.partial(
        search_beams,
        random_table(5),
        num_beams=num_beams,
        num_return=num_beams,
        max_new_tokens=7,
        length_penalty=alpha,
        length_normalization=normalization,
    )
    together = search(MANY_PROMPTS)
    for row, prompt in enumerate(MANY_PROMPTS):
        alone = search([prompt])  # its loop stops without waiting for other rows
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
        np.testing.assert_array_equal(alone.lengths[0], together.lengths[row])
        np.testing.assert_allclose(alone.scores[0], together.scores[row], rtol=1e-6)
        assert_best(alone, 0, plain_search(5, prompt, num_beams, 7, alpha, normalization))


@pytest.mark.parametrize("alpha, normalization", [(0.6, "gnmt"), (-0.5, "mean")])
def test_scores_are_penalized_log_probabilities_and_padding_follows_the_end(alpha, normalization):
    beams = search_beams(
        random_table(7),
        PROMPTS,
        num_beams=5,
        num_return=3,
        max_new_tokens=11,
        length_penalty=alpha,
        length_normalization=normalization,
    )
    assert np.any(beams.lengths < 11)
    for row, prompt in enumerate(PROMPTS):
        assert np.all(np.diff(beams.scores[row]) <= 0)
        for tokens, score, n in zip(beams.tokens[row], beams.scores[row], beams.lengths[row], strict=True):
            assert np.all(tokens[n:] == PAD) and np.all(tokens[:n] < 7) and EOS not in tokens[: n - 1]
            assert n == 11 or tokens[n - 1] == EOS
            expected = penalized(log_prob(7, prompt, tokens[:n].tolist()), n, alpha, normalization)
            np.testing.assert_allclose(score, expected, rtol=1e-5)


def greedy_tokens(table, prompts, max_new_tokens, eos_ids):
    tokens, is_token = padded(prompts)
    history = History(np.full((len(prompts), tokens.shape[1] + max_new_tokens - 1), -1, np.int32), np.int32(0))
    generated = generate(
        jax.tree_util.Partial(hash_step, jnp.array(table)),
        history,
        Prompts(tokens, is_token),
        SamplingParams(jax.random.split(jax.random.key(0), len(prompts))),
        DecodeSpec(max_new_tokens, eos_ids, PAD, "greedy"),
    )
    return np.asarray(generated.tokens)


def test_one_beam_without_eos_is_greedy():
    beams = search_beams(random_table(5), MANY_PROMPTS, num_beams=1, max_new_tokens=7, length_penalty=0.0, eos_ids=())
    np.testing.assert_array_equal(beams.tokens[:, 0], greedy_tokens(random_table(5), MANY_PROMPTS, 7, ()))
    assert np.all(beams.lengths == 7)


@pytest.mark.parametrize("alpha, normalization", [(0.0, "gnmt"), (1.0, "mean"), (-0.5, "gnmt")])
def test_one_beam_is_never_worse_than_greedy(alpha, normalization):
    # Nor always equal: a beam also ends where EOS is not the most likely token, and the best of all ends is returned.
    beams = search_beams(
        random_table(5),
        MANY_PROMPTS,
        num_beams=1,
        max_new_tokens=7,
        length_penalty=alpha,
        length_normalization=normalization,
    )
    greedy = greedy_tokens(random_table(5), MANY_PROMPTS, 7, (EOS,))
    for score, prompt, tokens in zip(beams.scores[:, 0], MANY_PROMPTS, greedy, strict=True):
        tokens = tokens[tokens != PAD].tolist()
        assert score >= penalized(log_prob(5, prompt, tokens), len(tokens), alpha, normalization) - 1e-5
    assert np.any(beams.tokens[:, 0] != greedy)


@pytest.mark.parametrize(
    "first, alpha, num_steps",
    [
        (0, 0.0, 2),  # two hypotheses, 0.9 and 0.05 * 0.9; the open beam 0.05 * 0.05 is less already
        (0, 1.0, 6),  # log(0.05 * 0.9) / 2 = -1.55 against n log(0.05) / 11: as if the other 11 - n tokens were free
        (1, -1.0, 2),  # 2 log(0.55 * 0.35) = -3.30 against 3 log(0.55 * 0.55) = -3.59: as if only the third were free
    ],
)
def test_the_loop_stops_as_soon_as_no_open_beam_can_win(first, alpha, num_steps):
    calls = []

    def counting_step(*args):
        jax.debug.callback(lambda: calls.append(1))
        return first_token_step(*args)

    beams = search_beams(
        STEADY_TABLE,
        ((first,), (first,)),
        counting_step,
        num_beams=2,
        num_return=2,
        max_new_tokens=11,
        length_penalty=alpha,
        length_normalization="mean",
    )
    jax.effects_barrier()
    assert beams.tokens[:, :, :3].tolist() == 2 * [[[EOS, PAD, PAD], [0, EOS, PAD]]]
    assert len(calls) == num_steps


def test_a_row_with_nan_logits_has_a_nan_score_and_does_not_change_the_others():
    table = STEADY_TABLE.copy()
    table[1, 2] = np.nan
    prompts, kwargs = ((0,), (1,), (2,)), dict(num_beams=3, num_return=2, max_new_tokens=5)
    with_nan, without = (search_beams(t, prompts, first_token_step, **kwargs) for t in (table, STEADY_TABLE))
    assert np.all(np.isnan(with_nan.scores[1])) and np.all(with_nan.tokens[1] == PAD)
    assert np.all(with_nan.lengths[1] == 0)
    for ours, theirs in zip(with_nan, without, strict=True):
        np.testing.assert_array_equal(ours[[0, 2]], theirs[[0, 2]])


def test_in_a_cache_that_is_too_small_only_rows_done_before_have_a_score():
    search = functools.partial(
        search_beams, STEADY_TABLE, ((2,), (0,)), first_token_step, num_beams=2, max_new_tokens=7, length_penalty=0.0
    )
    small, large = search(missing_slots=1), search()
    assert np.isnan(small.scores[0, 0]) and np.all(small.tokens[0] == PAD) and np.all(np.isfinite(large.scores))
    np.testing.assert_array_equal(small.tokens[1], large.tokens[1])
    np.testing.assert_array_equal(small.scores[1], large.scores[1])


@pytest.mark.parametrize("ruled_out", [-np.inf, np.finfo(np.float32).min], ids=["-inf", "finfo.min"])
def test_a_hypothesis_with_a_token_that_is_ruled_out_is_impossible(ruled_out):
    table = np.array([[0.0, 0.0, ruled_out], [ruled_out, 0.0, ruled_out]], np.float32)
    beams = search_beams(
        table, ((0,), (1,)), first_token_step, num_beams=5, num_return=3, max_new_tokens=2, length_penalty=0.0
    )
    assert beams.tokens.tolist() == [[[EOS, PAD], [0, EOS], [0, 0]], [[EOS, PAD], [PAD, PAD], [PAD, PAD]]]
    np.testing.assert_allclose(np.exp(beams.scores), [[1 / 2, 1 / 4, 1 / 4], [1, 0, 0]], rtol=1e-6)


def test_ties_go_to_the_lower_index_and_bfloat16_logits_are_normalized_in_float32():
    beams = search_beams(
        jnp.full((2, 3), 2.0, jnp.bfloat16),
        ((0,), (1,)),
        first_token_step,
        num_beams=5,
        num_return=5,
        max_new_tokens=2,
        length_penalty=0.0,
    )
    assert beams.tokens.tolist() == 2 * [[[EOS, PAD], [0, EOS], [2, EOS], [0, 0], [0, 2]]]
    np.testing.assert_allclose(beams.scores, 2 * [[-math.log(3)] + 4 * [-2 * math.log(3)]], rtol=1e-6)


def test_with_a_cached_gpt_and_padded_prompts_it_equals_full_passes_over_all_texts():
    V, max_new_tokens, prompts = 5, 3, ((4,), (2, 0, 3), (3, 1))
    config = TransformerConfig(
        vocab_size=V,
        max_len=7,
        num_layers=1,
        d_model=13,
        num_heads=6,
        num_kv_heads=2,
        head_dim=4,
        d_ff=17,
        positions="rotary",
    )
    model = GPT(config)
    params = random_like(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, 3), int)), scale=0.7)
    tokens, is_token = padded(prompts)
    beams = beam_search(
        jax.tree_util.Partial(functools.partial(model.apply, method="extend", last_only=True), params),
        make_cache(config, len(prompts), tokens.shape[1] + max_new_tokens - 1),
        tokens,
        is_token,
        num_beams=89,
        num_return=89,
        max_new_tokens=max_new_tokens,
        eos_ids=(EOS,),
        pad_id=PAD,
        length_penalty=0.6,
    )
    beams = Beams(*map(np.asarray, beams))
    full_pass = jax.jit(lambda *args: jax.nn.log_softmax(model.apply(*args)))
    endings = list(itertools.product(range(V), repeat=max_new_tokens))
    for row, prompt in enumerate(prompts):
        texts = np.zeros((len(endings), 6), int)  # a causal model ignores the padding after a text
        texts[:, : len(prompt) + max_new_tokens] = [(*prompt, *ending) for ending in endings]
        log_probs, scores_of = np.asarray(full_pass(params, texts)), {}
        for ending, ending_log_probs in zip(endings, log_probs, strict=True):
            n = ending.index(EOS) + 1 if EOS in ending else max_new_tokens
            total = sum(ending_log_probs[len(prompt) - 1 + i, ending[i]] for i in range(n))
            scores_of[ending[:n]] = penalized(total, n, 0.6, "gnmt")
        assert len(scores_of) == 85
        assert_best(beams, row, scores_of)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"num_beams": 0}, "num_beams=0: must be at least 1."),
        ({"num_return": 0}, "num_return=0: must be from 1 to num_beams=3."),
        ({"num_return": 4}, "num_return=4: must be from 1 to num_beams=3."),
        ({"max_new_tokens": 0}, "max_new_tokens=0: must be at least 1."),
        ({"length_penalty": 4.5}, "length_penalty=4.5: must be from -4 to 4."),
        ({"length_penalty": math.nan}, "length_penalty=nan: must be from -4 to 4."),
        (
            {"length_normalization": "none"},
            f"length_normalization='none': unknown. Choose one of: {', '.join(LENGTH_PENALTIES)}.",
        ),
    ],
    ids=str,
)
def test_invalid_arguments_are_refused_in_one_line(kwargs, message):
    with pytest.raises(UserError) as error:
        search_beams(STEADY_TABLE, PROMPTS, first_token_step, **{"num_beams": 3, "max_new_tokens": 2} | kwargs)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)

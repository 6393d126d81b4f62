"""Beam search by other rules: several ends, when it stops, groups of beams; and the reference library's answers."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from test_beam_search import (
    EOS,
    MANY,
    STEADY,
    TEXTS,
    assert_best,
    first_token_step,
    log_probs_after,
    penalized,
    random_table,
    searched,
)
from test_beam_search import everything as everything_until

import transformer_jax as tj
from transformer_jax import sampling
from transformer_jax.errors import UserError
from transformer_jax.nn.kv_cache import make_cache
from transformer_jax.run import step_function
from transformer_jax.sampling import STOPPING, MinLength, Renormalize, Suppress, beam_search

FIXTURES = Path(__file__).parent / "fixtures"
V, ENDS = 5, (EOS, 3)


def longer(text, beams):
    """Every continuation of beams [(tokens, sum of log-probabilities)] by a token."""
    return [
        ((*tokens, token), total + log_prob)
        for tokens, total in beams
        for token, log_prob in enumerate(log_probs_after(V, (*text, *tokens)))
    ]


# Several ends


@pytest.mark.parametrize("eos_ids", [ENDS, (3, 1), (0, 2, 4), (3, 77)], ids=str)
def test_with_several_ends_a_search_with_beams_for_all_texts_is_exhaustive(eos_ids):
    max_new_tokens, totals_of = 3, {}
    for text in TEXTS:
        totals, beams = {}, [((), 0.0)]
        for n in range(1, max_new_tokens + 1):
            candidates = longer(text, beams)
            beams = [beam for beam in candidates if beam[0][-1] not in eos_ids]
            totals |= dict(candidates if n == max_new_tokens else set(candidates) - set(beams))
        totals_of[text] = totals
    found = searched(random_table(V), TEXTS, num_beams=89, num_return=89, max_new_tokens=3, eos_ids=eos_ids)
    for row, text in enumerate(TEXTS):
        assert_best(found, row, {t: penalized(total, len(t), 1.0, "gnmt") for t, total in totals_of[text].items()})


def test_the_order_of_the_ends_changes_nothing():
    search = functools.partial(searched, random_table(V), MANY, num_beams=3, num_return=3, max_new_tokens=7)
    for ours, theirs in zip(search(eos_ids=(1, 3)), search(eos_ids=(3, 1)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


# When it stops


def plain_search(text, num_beams, max_new_tokens, alpha, stopping):
    """The reference library's rules over lists: {tokens: score} of what it finds."""
    ended, open_beams = {}, [((), 0.0)]
    for n in range(1, max_new_tokens + 1):
        candidates = sorted(longer(text, open_beams), key=lambda beam: -beam[1])
        likely = [beam for beam in candidates[:num_beams] if beam[0][-1] in ENDS or n == max_new_tokens]
        ended |= {tokens: penalized(total, n, alpha, "mean") for tokens, total in likely}
        ended = dict(sorted(ended.items(), key=lambda item: -item[1])[:num_beams])
        open_beams = [beam for beam in candidates if beam[0][-1] not in ENDS][:num_beams]
        is_full = len(ended) == num_beams
        if is_full and (stopping == "first" or min(ended.values()) >= penalized(open_beams[0][1], n, alpha, "mean")):
            break
    return ended


@pytest.mark.parametrize("stopping", ["first", "heuristic"])
@pytest.mark.parametrize("num_beams, alpha", [(1, 1.0), (2, 0.0), (3, 2.0), (4, 0.6), (3, -1.0)])
def test_the_rules_of_the_reference_library_are_kept_by_each_row_alone_and_in_a_batch(stopping, num_beams, alpha):
    kwargs = dict(
        num_beams=num_beams,
        num_return=num_beams,
        max_new_tokens=7,
        length_penalty=alpha,
        eos_ids=ENDS,
        length_normalization="mean",
        stopping=stopping,
    )
    together = searched(random_table(V), MANY, **kwargs)
    for row, text in enumerate(MANY):
        assert_best(together, row, plain_search(text, num_beams, 7, alpha, stopping))
    alone = searched(random_table(V), MANY[5:6], **kwargs)
    np.testing.assert_array_equal(alone.tokens[0], together.tokens[5])


@pytest.mark.parametrize("stopping, num_steps", [("exhaustive", 8), ("first", 2), ("heuristic", 6)])
def test_a_search_makes_no_more_steps_than_its_rule_asks_for(stopping, num_steps):
    # The likeliest text is 0 0 0 ..., of log-probability -0.51 n; the best two that end score -1.204 and -1.213.
    table = np.log(np.array([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1]], np.float32))
    calls = []

    def counting_step(*args):
        jax.debug.callback(lambda: calls.append(1))
        return first_token_step(*args)

    searched(
        table,
        ((0,), (1,)),
        counting_step,
        num_beams=2,
        max_new_tokens=11,
        length_penalty=0.5,
        length_normalization="mean",
        stopping=stopping,
    )
    jax.effects_barrier()
    assert len(calls) == num_steps


def test_no_rule_finds_a_better_text_than_never():
    found = {
        name: searched(random_table(V), MANY, num_beams=3, max_new_tokens=7, length_normalization="mean", stopping=name)
        for name in STOPPING
    }
    for name in STOPPING:
        assert np.all(found[name].scores <= found["exhaustive"].scores + 1e-6)
    assert np.any(found["first"].scores < found["exhaustive"].scores - 1e-3)


# Groups


def plain_groups(text, num_groups, width, max_new_tokens, diversity):
    """Diverse beam search over lists: {tokens: sum}, of all groups."""
    ended, groups = [{} for _ in range(num_groups)], [[((), 0.0)]] * num_groups
    for n in range(1, max_new_tokens + 1):
        chosen = []
        for g in range(num_groups):
            candidates = longer(text, groups[g])
            ended[g] |= {tokens: total for tokens, total in candidates if tokens[-1] == EOS}
            candidates = [beam for beam in candidates if beam[0][-1] != EOS]
            candidates.sort(key=lambda beam: diversity * chosen.count(beam[0][-1]) - beam[1])  # noqa: B023
            groups[g] = candidates[:width]
            chosen += [tokens[-1] for tokens, _ in groups[g]]
            if n == max_new_tokens:
                ended[g] |= dict(groups[g])
    best = [sorted(group.items(), key=lambda item: -item[1])[:width] for group in ended]
    return {tokens: total for group in best for tokens, total in group}


@pytest.mark.parametrize("num_groups, width, diversity", [(2, 2, 0.0), (2, 2, 0.9), (3, 1, 5.0), (2, 3, 0.4)])
def test_groups_search_one_after_the_other_each_away_from_those_before_it(num_groups, width, diversity):
    num_beams = num_groups * width
    found = searched(
        random_table(V),
        MANY,
        num_beams=num_beams,
        num_return=num_beams,
        max_new_tokens=5,
        length_penalty=0.0,
        num_groups=num_groups,
        diversity=diversity,
    )
    for row, text in enumerate(MANY):
        assert_best(found, row, plain_groups(text, num_groups, width, 5, diversity))


def test_groups_of_one_beam_that_must_differ_begin_with_different_tokens():
    kwargs = dict(num_beams=5, num_return=5, max_new_tokens=3, eos_ids=(), num_groups=5)
    found = searched(random_table(V), MANY, diversity=1000.0, **kwargs)
    assert all(len(set(row)) == 5 for row in found.tokens[:, :, 0].tolist())
    alike = searched(random_table(V), MANY, **kwargs)  # nothing makes them differ, and nothing is told twice
    assert np.all(alike.scores[:, 0] > -np.inf) and np.all(alike.scores[:, 1:] == -np.inf)


def test_one_group_is_plain_beam_search_whatever_the_diversity():
    search = functools.partial(searched, random_table(V), TEXTS, num_beams=3, num_return=3, max_new_tokens=5)
    for ours, theirs in zip(search(num_groups=1, diversity=7.0), search(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


# Methods


def test_methods_change_log_probabilities_and_only_renormalize_makes_them_sum_to_1():
    search = functools.partial(
        searched,
        STEADY,
        ((0,), (1,)),
        first_token_step,
        num_beams=3,
        num_return=3,
        max_new_tokens=1,
        length_penalty=0.0,
    )
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5)
    close(np.exp(search(processors=(Suppress((0,)),)).scores[0]), [0.9, 0.05, 0.0])
    close(np.exp(search(processors=(Suppress((0,)), Renormalize())).scores[0]), [0.9 / 0.95, 0.05 / 0.95, 0.0])


def test_methods_count_each_beams_own_tokens():
    max_new_tokens = 4
    found = searched(
        random_table(V),
        TEXTS,
        num_beams=300,
        num_return=300,
        max_new_tokens=max_new_tokens,
        length_penalty=0.0,
        processors=(MinLength(3, (EOS,)),),
    )
    for row, text in enumerate(TEXTS):
        totals = everything_until(V, text, max_new_tokens)
        assert_best(found, row, {tokens: total for tokens, total in totals.items() if EOS not in tokens[:3]})


# The reference library


@pytest.mark.parametrize("name, length_penalty, stopping", [("beam", 1.0, "heuristic"), ("beam_long", 2.0, "first")])
@pytest.mark.parametrize("folder", ["gpt2", "llama", "llama3", "t5", "t5_v1_1", "bart", "marian"])
def test_texts_and_scores_are_those_of_the_reference_library(folder, name, length_penalty, stopping):
    run, given = tj.from_pretrained(FIXTURES / folder), dict(np.load(FIXTURES / folder / "expected.npz"))
    num_new = given[name].shape[1]
    if "source" in given:
        start = jax.jit(lambda p, *args: run.model.apply({"params": p}, *args, capacity=num_new, method="start"))
        cache = start(run.params, given["source"], given["source_is_token"])
        tokens = np.full((len(given["source"]), 1), run.generation_defaults.start_id, np.int32)
        is_token = np.ones_like(tokens, bool)
    else:
        tokens, is_token = given["tokens"], given["is_token"]
        cache = make_cache(run.config, len(tokens), tokens.shape[1] + num_new)
    found = beam_search(
        step_function(run),
        cache,
        tokens,
        is_token,
        run.generation_defaults.processors,
        num_beams=4,
        num_return=3,
        max_new_tokens=num_new,
        eos_ids=run.generation_defaults.eos_ids,
        pad_id=run.generation_defaults.pad_id,
        length_penalty=length_penalty,
        length_normalization="mean",
        stopping=stopping,
    )
    np.testing.assert_array_equal(found.tokens.reshape(-1, num_new), given[name])
    np.testing.assert_allclose(found.scores.reshape(-1), given[f"{name}_scores"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"num_groups": 0}, "num_groups=0: must divide num_beams=3."),
        ({"num_groups": 2}, "num_groups=2: must divide num_beams=3."),
        ({"diversity": -0.5}, "diversity=-0.5: must be from 0"),
        ({"eos_ids": (-1,)}, "eos_ids=(-1,): must be token ids"),
        ({"stopping": "last"}, f"stopping='last': unknown. Choose one of: {', '.join(STOPPING)}."),
    ],
    ids=str,
)
def test_what_has_no_meaning_is_refused(kwargs, message):
    with pytest.raises(UserError) as error:
        searched(STEADY, TEXTS, first_token_step, **{"num_beams": 3, "max_new_tokens": 2} | kwargs)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_one_new_token_is_searched_with_a_model_too():
    run = tj.from_pretrained(Path(__file__).parent / "fixtures" / "gpt2")
    tokens = np.arange(2, 8).reshape(2, 3)
    beams = sampling.beam_search(
        step_function(run),
        make_cache(run.config, 2, 3),
        tokens,
        tokens >= 0,
        num_beams=5,
        max_new_tokens=1,
        eos_ids=(),
        pad_id=0,
        num_return=3,
    )
    logits = np.asarray(tj.logits(run, tokens))[:, -1]
    np.testing.assert_array_equal(beams.tokens[:, :, 0], np.argsort(-logits, axis=1)[:, :3])

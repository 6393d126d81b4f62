"""Beam search: several EOS ids, stopping rules, diverse groups, logits processors, the reference library's results."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.beams import (
    EOS,
    MANY_PROMPTS,
    PROMPTS,
    STEADY_TABLE,
    all_hypotheses,
    assert_best,
    beam_search,
    first_token_step,
    next_log_probs,
    penalized,
    random_table,
    search_beams,
)

import transformer_jax as tj
from transformer_jax.errors import UserError
from transformer_jax.inference.forward import step_function
from transformer_jax.nn.kv_cache_kinds import make_cache
from transformer_jax.sampling import STOPPING, MinLength, Renormalize, Suppress

FIXTURES = Path(__file__).parent / "fixtures"
V, EOS_IDS = 5, (EOS, 3)


def longer(prompt, open_beams):
    """Every continuation of open beams [(tokens, sum of log-probabilities)] by one token."""
    return [
        ((*tokens, token), total + log_prob)
        for tokens, total in open_beams
        for token, log_prob in enumerate(next_log_probs(V, (*prompt, *tokens)))
    ]


def rules(num_beams, alpha, stopping):
    """Arguments of a search; tests with the same ones share a compiled program."""
    return dict(
        num_beams=num_beams,
        num_return=num_beams,
        max_new_tokens=7,
        length_penalty=alpha,
        eos_ids=EOS_IDS,
        length_normalization="mean",
        stopping=stopping,
    )


# Several EOS ids


@pytest.mark.parametrize("eos_ids", [EOS_IDS, (3, 1), (0, 2, 4), (3, 77)], ids=str)
def test_with_several_eos_ids_a_search_with_beams_for_all_prefixes_is_exhaustive(eos_ids):
    max_new_tokens, totals_of = 3, {}
    for prompt in PROMPTS:
        totals, open_beams = {}, [((), 0.0)]
        for n in range(1, max_new_tokens + 1):
            candidates = longer(prompt, open_beams)
            open_beams = [beam for beam in candidates if beam[0][-1] not in eos_ids]
            totals |= dict(candidates if n == max_new_tokens else set(candidates) - set(open_beams))
        totals_of[prompt] = totals
    beams = search_beams(random_table(V), PROMPTS, num_beams=89, num_return=89, max_new_tokens=3, eos_ids=eos_ids)
    for row, prompt in enumerate(PROMPTS):
        assert_best(beams, row, {t: penalized(total, len(t), 1.0, "gnmt") for t, total in totals_of[prompt].items()})


def test_the_order_of_the_eos_ids_changes_nothing():
    kwargs = rules(3, 2.0, "exhaustive")
    first, second = (
        search_beams(random_table(V), MANY_PROMPTS, **kwargs | {"eos_ids": ids}) for ids in (EOS_IDS, (3, 1))
    )
    for ours, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(ours, theirs)


# Stopping rules


def plain_search(prompt, num_beams, max_new_tokens, alpha, stopping):
    """Beam search over lists with the reference library's stopping rules: {tokens: score} of the hypotheses."""
    ended, open_beams = {}, [((), 0.0)]
    for n in range(1, max_new_tokens + 1):
        candidates = sorted(longer(prompt, open_beams), key=lambda beam: -beam[1])
        likely = [beam for beam in candidates[:num_beams] if beam[0][-1] in EOS_IDS or n == max_new_tokens]
        ended |= {tokens: penalized(total, n, alpha, "mean") for tokens, total in likely}
        ended = dict(sorted(ended.items(), key=lambda item: -item[1])[:num_beams])
        open_beams = [beam for beam in candidates if beam[0][-1] not in EOS_IDS][:num_beams]
        is_full = len(ended) == num_beams
        if is_full and (stopping == "first" or min(ended.values()) >= penalized(open_beams[0][1], n, alpha, "mean")):
            break
    return ended


@pytest.mark.parametrize(
    "stopping, num_beams, alpha",
    [
        *(("heuristic", *case) for case in ((1, 1.0), (2, 0.0), (3, 2.0), (4, 0.6), (3, -1.0))),
        *(("first", *case) for case in ((1, 1.0), (2, 0.0), (3, 2.0), (4, 0.6), (3, -1.0))),
    ],
)
def test_the_stopping_rules_equal_those_of_the_reference_library_row_by_row(stopping, num_beams, alpha):
    kwargs = rules(num_beams, alpha, stopping)
    together = search_beams(random_table(V), MANY_PROMPTS, **kwargs)
    for row, prompt in enumerate(MANY_PROMPTS):
        assert_best(together, row, plain_search(prompt, num_beams, 7, alpha, stopping))
    if (stopping, alpha) == ("heuristic", 2.0):
        alone = search_beams(random_table(V), MANY_PROMPTS[5:6], **kwargs)
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[5])


@pytest.mark.parametrize("stopping, num_steps", [("exhaustive", 8), ("first", 2), ("heuristic", 6)])
def test_a_search_makes_exactly_the_steps_that_its_stopping_rule_needs(stopping, num_steps):
    # The most likely text is 0 0 0 ..., of log-probability -0.51 n; the best two that end score -1.204 and -1.213.
    table = np.log(np.array([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1]], np.float32))
    calls = []

    def counting_step(*args):
        jax.debug.callback(lambda: calls.append(1))
        return first_token_step(*args)

    search_beams(
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


def test_no_stopping_rule_finds_a_better_text_than_exhaustive():
    best_of = {
        name: search_beams(random_table(V), MANY_PROMPTS, **rules(3, 2.0, name)).scores[:, 0] for name in STOPPING
    }
    for name in STOPPING:
        assert np.all(best_of[name] <= best_of["exhaustive"] + 1e-6)
    assert np.any(best_of["first"] < best_of["exhaustive"] - 1e-3)


# Groups


def plain_groups(prompt, num_groups, width, max_new_tokens, diversity):
    """Diverse beam search over lists: {tokens: log-probability} of all groups."""
    ended, groups = [{} for _ in range(num_groups)], [[((), 0.0)]] * num_groups
    for n in range(1, max_new_tokens + 1):
        chosen = []
        for g in range(num_groups):
            candidates = longer(prompt, groups[g])
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
def test_each_group_is_penalized_for_the_tokens_that_earlier_groups_chose(num_groups, width, diversity):
    num_beams = num_groups * width
    beams = search_beams(
        random_table(V),
        MANY_PROMPTS,
        num_beams=num_beams,
        num_return=num_beams,
        max_new_tokens=5,
        length_penalty=0.0,
        num_groups=num_groups,
        diversity=diversity,
    )
    for row, prompt in enumerate(MANY_PROMPTS):
        assert_best(beams, row, plain_groups(prompt, num_groups, width, 5, diversity))


def test_groups_of_one_beam_with_high_diversity_start_with_different_tokens():
    kwargs = dict(num_beams=3, num_return=3, max_new_tokens=2, eos_ids=(), num_groups=3)
    beams = search_beams(random_table(V), MANY_PROMPTS, diversity=1000.0, **kwargs)
    assert all(len(set(row)) == 3 for row in beams.tokens[:, :, 0].tolist())
    # Without diversity all groups find the same hypothesis, which is returned once.
    alike = search_beams(random_table(V), MANY_PROMPTS, **kwargs)
    assert np.all(alike.scores[:, 0] > -np.inf) and np.all(alike.scores[:, 1:] == -np.inf)


def test_one_group_is_plain_beam_search_at_any_diversity():
    search = functools.partial(search_beams, random_table(V), PROMPTS, num_beams=3, num_return=3, max_new_tokens=5)
    for ours, theirs in zip(search(num_groups=1, diversity=7.0), search(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


# Logits processors


def test_processors_change_log_probabilities_and_only_renormalize_makes_their_sum_1():
    search = functools.partial(
        search_beams,
        STEADY_TABLE,
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


def test_processors_count_the_tokens_of_each_beam_separately():
    max_new_tokens = 4
    beams = search_beams(
        random_table(V),
        PROMPTS,
        num_beams=300,
        num_return=300,
        max_new_tokens=max_new_tokens,
        length_penalty=0.0,
        processors=(MinLength(3, (EOS,)),),
    )
    for row, prompt in enumerate(PROMPTS):
        totals = all_hypotheses(V, prompt, max_new_tokens)
        assert_best(beams, row, {tokens: total for tokens, total in totals.items() if EOS not in tokens[:3]})


# The reference library


@functools.cache
def pretrained(folder):
    return tj.from_pretrained(FIXTURES / folder)


@pytest.mark.parametrize("name, length_penalty, stopping", [("beam", 1.0, "heuristic"), ("beam_long", 2.0, "first")])
@pytest.mark.parametrize("folder", ["gpt2", "llama", "llama3", "t5", "t5_v1_1", "bart", "marian"])
def test_tokens_and_scores_equal_those_of_the_reference_library(folder, name, length_penalty, stopping):
    run, given = pretrained(folder), dict(np.load(FIXTURES / folder / "expected.npz"))
    num_new = given[name].shape[1]
    if "source" in given:
        start = jax.jit(
            lambda p, *args: run.model.apply({"params": p}, *args, capacity=num_new, method="encode_source")
        )
        cache = start(run.params, given["source"], given["source_is_token"])
        tokens = np.full((len(given["source"]), 1), run.generation_defaults.start_id, np.int32)
        is_token = np.ones_like(tokens, bool)
    else:
        tokens, is_token = given["tokens"], given["is_token"]
        cache = make_cache(run.config, len(tokens), tokens.shape[1] + num_new)
    beams = beam_search(
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
    np.testing.assert_array_equal(beams.tokens.reshape(-1, num_new), given[name])
    np.testing.assert_allclose(beams.scores.reshape(-1), given[f"{name}_scores"], rtol=1e-5, atol=1e-5)


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
def test_invalid_arguments_are_refused_in_one_line(kwargs, message):
    with pytest.raises(UserError) as error:
        search_beams(STEADY_TABLE, PROMPTS, first_token_step, **{"num_beams": 3, "max_new_tokens": 2} | kwargs)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_search_for_one_new_token_returns_the_most_likely_ones():
    run = pretrained("gpt2")
    tokens = np.arange(2, 8).reshape(2, 3)
    beams = beam_search(
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

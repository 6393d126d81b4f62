"""Speculative decoding: greedy tokens and the distribution of sampled ones are those of plain decoding."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import close, random_like
from helpers.runs import make_run

import transformer_jax as tj
from transformer_jax import sampling
from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.inference.forward import step_function
from transformer_jax.models import GPT, parameter_shapes
from transformer_jax.nn.kv_cache import KeysValues
from transformer_jax.nn.kv_cache_full import FullCache
from transformer_jax.nn.kv_cache_kinds import make_cache
from transformer_jax.nn.positions import token_positions
from transformer_jax.run import Run
from transformer_jax.sampling import (
    DecodeSpec,
    FrequencyPenalty,
    MinLength,
    PresencePenalty,
    Prompts,
    SamplingParams,
    Temperature,
    TopK,
)
from transformer_jax.sampling.drafts import NO_PROPOSAL, look_up_tokens
from transformer_jax.sampling.logits_processors import apply_processors, init_states

FIXTURES = Path(__file__).parent / "fixtures"
B, V, PAD, EOS, MAX_NEW = 5, 7, 0, 2, 17
TABLE = 2.5 * np.random.default_rng(350).normal(size=(V, V, V)).astype(np.float32)
TABLE[:, :, EOS] -= 2
NEAR = TABLE + np.random.default_rng(1).normal(size=TABLE.shape).astype(np.float32)
FAR = 2 * np.random.default_rng(2).normal(size=TABLE.shape).astype(np.float32)
PROMPTS = np.array([[0, 1, 3], [6, 3, 1], [0, 0, 5], [4, 0, 0], [5, 6, 0]])  # padded on either side
IS_TOKEN = PROMPTS != 0
KEYS = jax.random.split(jax.random.key(0), B)


# A toy model: the logits after two tokens are a row of a table, and the first of the two is read from the cache


def verify(table, tokens, is_token, cache):
    positions = token_positions(is_token, cache.num_tokens)
    cache = cache.append(is_token)
    numbers = tokens[:, :, None, None].astype(jnp.float32)
    cache = cache.write(0, numbers, numbers)
    is_before = cache.is_token[:, None] & (token_positions(cache.is_token)[:, None] == positions[:, :, None] - 1)
    before = jnp.sum(jnp.where(is_before, cache.layers[0].keys[:, None, :, 0], 0), axis=-1).astype(jnp.int32)
    return table[before, tokens], cache


def step(table, tokens, is_token, cache):
    logits, cache = verify(table, tokens, is_token, cache)
    last = tokens.shape[1] - 1 - jnp.argmax(is_token[:, ::-1], axis=1)
    return logits[jnp.arange(len(tokens)), last], cache


@functools.partial(jax.jit, static_argnums=(0, 1))
def empty_cache(num_rows, capacity):
    numbers = jnp.zeros((num_rows, capacity, 1, 1))
    is_token = jnp.zeros((num_rows, capacity), bool)
    num_tokens = jnp.zeros((num_rows, 1), jnp.int32)
    return FullCache((KeysValues.from_projections(numbers, numbers),), is_token, num_tokens, jnp.int32(0))


def plain(*processors, prompts=PROMPTS, is_token=IS_TOKEN, keys=KEYS, **kwargs):
    spec = DecodeSpec(**dict(max_new_tokens=MAX_NEW, eos_ids=(EOS,), pad_id=PAD) | kwargs)
    cache = empty_cache(len(prompts), prompts.shape[1] + spec.max_new_tokens)
    model = jax.tree_util.Partial(step, jnp.array(TABLE))
    out = sampling.generate(model, cache, Prompts(prompts, is_token), SamplingParams(keys, processors), spec)
    return jax.tree.map(np.asarray, out)


def drafted(*processors, draft=None, extra_slots=0, prompts=PROMPTS, is_token=IS_TOKEN, keys=KEYS, **kwargs):
    """Speculative decoding with the toy model; `draft` is the table of a draft model, or give prompt_lookup."""
    spec = DecodeSpec(**dict(max_new_tokens=MAX_NEW, eos_ids=(EOS,), pad_id=PAD, num_draft=3) | kwargs)
    capacity = prompts.shape[1] + spec.max_new_tokens - 1 + spec.num_draft + extra_slots
    step_and_verify = [jax.tree_util.Partial(function, jnp.array(TABLE)) for function in (step, verify)]
    cache = empty_cache(len(prompts), capacity)
    drafting = (None, None)
    if draft is not None:
        drafting = jax.tree_util.Partial(step, jnp.array(draft)), empty_cache(len(prompts), capacity)
    params = SamplingParams(keys, processors)
    out = sampling.speculate(*step_and_verify, cache, Prompts(prompts, is_token), params, spec, *drafting)
    return jax.tree.map(np.asarray, out)


def assert_same(found, expected):
    for name in ("tokens", "lengths", "top_tokens"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    close(found.log_probs, expected.log_probs)
    close(found.top_log_probs, expected.top_log_probs)
    is_open = expected.lengths == expected.tokens.shape[1]  # the states of rows that have ended are not used
    for ours, theirs in zip(jax.tree.leaves(found.states), jax.tree.leaves(expected.states), strict=True):
        np.testing.assert_array_equal(ours[is_open], theirs[is_open])


# The same tokens


GREEDY_DRAFT = {"draft": NEAR, "method": "greedy"}


@pytest.mark.parametrize(
    "drafts, extra_slots",
    [(GREEDY_DRAFT, 0), (GREEDY_DRAFT, 13), ({"prompt_lookup": 1, "method": "greedy"}, 0), ({"prompt_lookup": 2}, 13)],
    ids=["draft", "draft, more slots", "lookup", "sampled lookup, more slots"],
)
def test_tokens_log_probs_states_and_ends_equal_those_of_plain_decoding(drafts, extra_slots):
    processors, ends = (MinLength(4, (EOS,)), PresencePenalty(0.5)), dict(stop_sequences=((3, 5),), num_top=2)
    expected = plain(*processors, method=drafts.get("method", "sample"), **ends)
    found, num_drafted, num_accepted = drafted(*processors, extra_slots=extra_slots, **ends, **drafts)
    assert_same(found, expected)
    if "method" in drafts:
        assert expected.lengths.tolist() == [4, 15, 5, 6, 17]  # ended by: 3 5, EOS, EOS, 3 5, max_new_tokens
    assert np.all(num_accepted <= num_drafted) and 0 < num_accepted.sum() < num_drafted.sum()


@pytest.mark.parametrize("method", ["greedy", "sample"])
def test_every_token_of_a_draft_model_that_is_the_model_itself_is_accepted(method):
    found, num_drafted, num_accepted = drafted(draft=TABLE, method=method, eos_ids=(), num_draft=4)
    np.testing.assert_array_equal(num_accepted, num_drafted)
    assert np.all(num_drafted == 13) and np.all(found.lengths == MAX_NEW)  # 1, 3 times 4 drafted and 1 more, and 1


def test_sampled_tokens_do_not_depend_on_num_draft_slots_or_other_rows():
    expected = drafted(Temperature(0.8), draft=NEAR)
    alone = dict(prompts=PROMPTS[1:2], is_token=IS_TOKEN[1:2], keys=KEYS[1:2])
    for kwargs, rows in (({"num_draft": 1, "extra_slots": 13}, slice(B)), (alone, slice(1, 2))):
        result = drafted(Temperature(0.8), draft=NEAR, **kwargs)
        np.testing.assert_array_equal(result.generated.tokens, expected.generated.tokens[rows])
        close(result.generated.log_probs, expected.generated.log_probs[rows])
    assert not np.array_equal(expected.generated.tokens, drafted(Temperature(0.8), draft=FAR).generated.tokens)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_prompt_lookup_proposes_what_followed_the_latest_occurrence(n):
    random = np.random.default_rng(n)
    texts, lengths = random.integers(0, 2 + (n < 3), (101, 13)), random.integers(1, 14, 101)
    found = look_up_tokens(jnp.array(texts), jnp.array(lengths), n)
    for text, length, token in zip(texts.tolist(), lengths.tolist(), found.tolist(), strict=True):
        ends = [i for i in range(n, length) if text[i - n : i] == text[length - n : length]]
        assert token == (text[ends[-1]] if ends and n <= length else NO_PROPOSAL)
    assert {NO_PROPOSAL, 0, 1} <= {*found.tolist()}


# The distribution

NUM_ROWS, NUM_NEW, WITH_STATE = 20011, 4, (Temperature(1.3), PresencePenalty(1.5), FrequencyPenalty(-0.7))


@functools.cache
def exact(processors):
    """Exact probability of every text of NUM_NEW tokens after the prompt 6 3, [V ** NUM_NEW], token by token."""
    texts = np.indices((V,) * NUM_NEW).reshape(NUM_NEW, -1).T
    rows, lengths = np.concatenate([np.tile([6, 3], (len(texts), 1)), texts], axis=1), np.full(len(texts), 2)
    states, probability = init_states(processors, rows, lengths, NUM_NEW), 1.0
    apply = jax.jit(apply_processors)
    for i in range(NUM_NEW):
        logits = jnp.array(TABLE[rows[:, i], rows[:, i + 1]])
        logits, states = apply(processors, logits, rows, lengths + i, states)
        probability = probability * np.asarray(jax.nn.softmax(logits), np.float64)[np.arange(len(rows)), texts[:, i]]
    return probability / probability.sum()


def surprise(tokens, probability):
    """Chi-square above its expectation, in standard deviations; rare texts are counted together."""
    texts = np.ravel_multi_index(tokens.T, (V,) * NUM_NEW)
    seen, expected = np.bincount(texts, minlength=len(probability)), NUM_ROWS * probability
    assert not seen[expected < 1e-9].any()
    is_rare = expected < 7
    seen, expected = (np.append(x[~is_rare], x[is_rare].sum()) for x in (seen, expected))
    assert len(seen) > 30
    return (np.sum((seen - expected) ** 2 / np.maximum(expected, 1)) - len(seen) + 1) / np.sqrt(2 * len(seen) - 2)


@pytest.mark.parametrize("processors", [(Temperature(1.5), TopK(4)), WITH_STATE], ids=["shape", "states"])
@pytest.mark.parametrize(
    "drafts", [{"draft": NEAR}, {"draft": FAR}, {"prompt_lookup": 1}], ids=["near", "far", "lookup"]
)
def test_texts_have_the_exact_distribution_of_the_model_after_the_processors(processors, drafts):
    prompts = np.array([[0, 6, 3], [6, 3, 0], [6, 0, 3]])[np.arange(NUM_ROWS) % 3]
    rows = dict(prompts=prompts, is_token=prompts != 0, keys=jax.random.split(jax.random.key(5), NUM_ROWS))
    found, num_drafted, num_accepted = drafted(
        *processors, **drafts, **rows, num_draft=2, extra_slots=7, eos_ids=(), max_new_tokens=NUM_NEW
    )
    assert abs(surprise(found.tokens, exact(processors))) < 4
    assert 0.02 < num_accepted.sum() / num_drafted.sum() < 0.9


# Models


@functools.cache
def run_of(positions, seed, **kwargs):
    config = TransformerConfig(vocab_size=11, max_len=23, num_layers=1, d_model=8, num_heads=2, positions=positions)
    model = GPT(dataclasses.replace(config, **kwargs))
    return Run(model, random_like(parameter_shapes(model), seed, 0.7), None, model.config)


@pytest.mark.parametrize("positions, lookup", [("rotary", 0), ("learned", 0), ("alibi", 1), ("shaw", 1)])
def test_a_gpt_generates_the_same_tokens_to_the_end_of_its_context(positions, lookup):
    run, draft, capacity, processors = run_of(positions, 0), None, 23, (FrequencyPenalty(1.0),)
    if not lookup:
        params = jax.tree.map(lambda ours, other: ours + 0.1 * other, run.params, run_of(positions, 1).params)
        draft = dataclasses.replace(run, params=params)
    spec = DecodeSpec(20, method="sample" if lookup else "greedy", num_top=1, num_draft=3, prompt_lookup=lookup)
    given = (Prompts(PROMPTS, IS_TOKEN), SamplingParams(KEYS, processors), spec)
    expected = sampling.generate(step_function(run), make_cache(run.config, B, capacity), *given)
    drafting = (step_function(draft), make_cache(draft.config, B, capacity, 4)) if draft else ()
    result = sampling.speculate(
        step_function(run),
        step_function(run, last_only=False),
        make_cache(run.config, B, capacity, 4),
        *given,
        *drafting,
    )
    assert_same(result.generated, expected)
    assert len({*np.ravel(expected.tokens).tolist()}) > 4 and result.num_accepted.sum() > 0


def test_slots_of_refused_tokens_are_removed_or_become_padding():
    run = run_of("rotary", 0)
    read = jax.jit(step_function(run, last_only=False))
    tokens = np.random.default_rng(0).integers(0, 11, (3, 13))
    _, cache = read(tokens[:, :5], np.array([[0, 1, 1, 1, 1], [1] * 5, [1] * 5], bool), make_cache(run.config, 3, 17))
    _, extended = read(tokens[:, 5:9], np.ones((3, 4), bool), cache)
    kept = extended.accept_prefix(jnp.array([2, 0, 3]), 4)
    assert kept.num_written == 8 and kept.num_tokens[:, 0].tolist() == [6, 5, 8]
    logits, _ = read(tokens[:, 9:], np.ones((3, 4), bool), kept)
    is_read = np.ones((3, 8), bool)
    is_read[0, 2:4] = is_read[1, :4] = is_read[2, 3:4] = False
    close(logits, read(tokens[:, 5:], is_read, cache)[0][:, 4:])


# Runs


def folder_of(tmp_path, run):
    tj.save(run, tmp_path / "draft")
    return str(tmp_path / "draft")


def test_completions_with_drafts_equal_those_without(tmp_path):
    run, prompts = make_run("byte"), ["the cat", "狐"]
    ask = functools.partial(tj.GenerationConfig, max_new_tokens=19, logit_bias={104: 5.5, 107: 5.5}, seed=2)
    plain, looked_up = (tj.complete(run, prompts, ask(prompt_lookup=n), num_top=2) for n in (0, 1))
    greedy = tj.complete(run, prompts, ask(method="greedy"))
    asked = tj.complete(run, prompts, ask(method="greedy", draft=folder_of(tmp_path, run), num_draft=5))
    for found, expected in zip(looked_up + asked, plain + greedy, strict=True):
        assert (found.tokens, found.text, found.finish) == (expected.tokens, expected.text, expected.finish)
        close(found.log_probs, expected.log_probs)
        assert 0 < found.num_accepted <= found.num_drafted and expected.num_drafted == 0
    assert all(completion.num_accepted == 15 for completion in asked)  # 3 times 5 and 1 more, after the first


def test_prompt_lookup_works_in_stream_and_benchmark_and_beyond_the_context():
    run = make_run("byte")
    ask = functools.partial(
        tj.GenerationConfig,
        max_new_tokens=131,
        on_overflow="re-prefill",
        logit_bias={104: 6.5, 107: 6.5},
        temperature=0.9,
    )
    (found,), (expected,) = (tj.complete(run, ["the cat"], ask(prompt_lookup=n)) for n in (2, 0))
    assert found.text == expected.text and found.num_accepted > 5
    assert "".join(tj.stream(run, "the cat", **ask(prompt_lookup=2).to_dict())) == expected.text
    assert 0 < tj.benchmark(run, "the cat", ask(prompt_lookup=2))["accepted_share"] < 1


def test_a_seq2seq_run_drafts_its_targets_with_a_draft_model():
    run, sources = tj.from_pretrained(FIXTURES / "bart"), ["the cat sat", "this"]
    ask = functools.partial(tj.GenerationConfig, max_new_tokens=11, method="greedy")
    found, expected = tj.complete(run, sources, ask(draft=str(FIXTURES / "bart"))), tj.complete(run, sources, ask())
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    assert all(one.num_accepted == 8 for one in found)  # twice 4 and 1 more, after the first


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"draft": "a", "prompt_lookup": 2}, "prompt_lookup=2: a draft is given as well"),
        ({"prompt_lookup": 2, "method": "beam"}, "prompt_lookup=2: beam search takes no drafts"),
        ({"draft": "a", "method": "beam"}, "draft='a': beam search takes no drafts"),
        (
            {"draft": "a", "on_overflow": "re-prefill"},
            "on_overflow='re-prefill': needs texts within the context when there is a draft",
        ),
        ({"num_draft": 0}, "num_draft=0: must be at least 1"),
        ({"prompt_lookup": -1}, "prompt_lookup=-1: must be"),
        ({"draft": "/no/such"}, "/no/such"),
        ({"draft": str(FIXTURES / "t5")}, "is a Seq2Seq, and must be a GPT"),
        ({"draft": str(FIXTURES / "gpt2")}, "a vocabulary of 101 tokens, and the model one of 259"),
    ],
)
def test_unusable_draft_settings_are_refused_in_one_line(settings, words):
    with pytest.raises(UserError) as error:
        tj.generate(make_run("byte"), "the", **{"max_new_tokens": 3} | settings)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"max_len": 89}, "a context of 89 tokens, and must have the model's 97 or more"),
        ({"attention": "linear", "positions": "none"}, "the draft has linear attention"),
        ({"tokenizer": "char"}, "another tokenizer than the model"),
    ],
)
def test_a_draft_model_needs_slots_and_the_context_and_tokenizer_of_the_model(tmp_path, changes, words):
    run, changes = make_run("byte"), dict(changes)
    tokenizer = run.tokenizer
    if changes.pop("tokenizer", ""):
        tokenizer = tj.tokenizers.CharTokenizer(tuple(map(chr, range(1000, 1256))))
    model = GPT(dataclasses.replace(run.config, **changes))
    draft = Run(model, random_like(parameter_shapes(model)), tokenizer, model.config)
    with pytest.raises(UserError, match=words):
        tj.generate(run, "the", max_new_tokens=3, draft=folder_of(tmp_path, draft))
    if "attention" in changes:
        with pytest.raises(UserError, match="prompt_lookup=2: the model has linear attention"):
            tj.generate(draft, "the", max_new_tokens=3, prompt_lookup=2)


@pytest.mark.parametrize(
    "kwargs, words",
    [
        ({"extra_slots": -1, "prompt_lookup": 1}, "cache.capacity=21: must be at least 22 slots"),
        ({}, "prompt_lookup=0"),
        ({"draft": NEAR, "prompt_lookup": 2}, "prompt_lookup=2"),
        ({"prompt_lookup": 1, "num_draft": 0}, "num_draft=0"),
        ({"prompt_lookup": 1, "max_new_tokens": 0}, "max_new_tokens=0"),
    ],
    ids=["slots", "no draft", "two drafts", "none drafted", "none new"],
)
def test_invalid_arguments_are_refused(kwargs, words):
    with pytest.raises(UserError, match=words):
        drafted(**kwargs)

"""Decoding: greedy and sampled tokens of a toy model and of a GPT, keys, batches; temperature, top-k and top-p."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import close, random_like
from helpers.markov import EOS, KEYS, MAX_NEW, PAD, PROMPTS, TABLE, B, V, markov_step
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.models import GPT
from transformer_jax.nn.kv_cache_kinds import make_cache
from transformer_jax.nn.positions import POSITIONS
from transformer_jax.sampling import (
    METHODS,
    Custom,
    DecodeSpec,
    PresencePenalty,
    Prompts,
    SamplingParams,
    Temperature,
    TopK,
    TopP,
    decode,
    extend,
    generate,
    prefill,
)
from transformer_jax.sampling.logits_processors import RULED_OUT, apply_processors, keep_first

lightly = settings(max_examples=100, deadline=None, database=None)
rows_of_logits = st.lists(st.integers(-4, 4), min_size=V, max_size=V)  # integers: ties are common
ENDLESS = TABLE.copy()
ENDLESS[:, EOS] = -1e9


def generate_tokens(
    table, *processors, method="sample", prompts=PROMPTS, keys=KEYS, first_index=0, max_new_tokens=MAX_NEW
):
    step = jax.tree_util.Partial(markov_step, jnp.array(table))
    generated = generate(
        step,
        np.full(len(prompts), -1, np.int32),
        Prompts(prompts, prompts != PAD, first_index=first_index),
        SamplingParams(keys, processors),
        DecodeSpec(max_new_tokens, (EOS,), PAD, method),
    )
    tokens = generated.tokens
    np.testing.assert_array_equal(generated.lengths, np.sum(np.asarray(tokens) != PAD, axis=1))
    assert tokens.shape == (len(prompts), max_new_tokens) and tokens.dtype == jnp.int32
    return np.asarray(tokens)


def greedy_chains(table, prompts=PROMPTS):
    """Slow twin of greedy decoding: follow the most likely token until EOS."""
    out = np.full((len(prompts), MAX_NEW), PAD)
    for row, prompt in enumerate(prompts):
        token = [t for t in prompt if t != PAD][-1]
        for i in range(MAX_NEW):
            token = out[row, i] = np.argmax(table[token])
            if token == EOS:
                break
    return out


def chain_table():
    """1 -> 3 -> 4 -> 5 -> EOS, 6 -> 6: rows end at different steps, one never."""
    table = np.zeros((V, V), np.float32)
    for token, following in {1: 3, 3: 4, 4: 5, 5: EOS, 6: 6, EOS: 6, PAD: 6}.items():
        table[token, following] = 9
    return table


@pytest.mark.parametrize("table", [TABLE, ENDLESS, chain_table()], ids=["random", "endless", "chain"])
@pytest.mark.parametrize(
    "method, processors",
    [("greedy", ()), ("sample", (TopK(1),)), ("sample", (Temperature(1e-5),)), ("sample", (TopP(1e-5),))],
    ids=["greedy", "top_k=1", "cold", "top_p~0"],
)
def test_greedy_top_1_and_cold_sampling_follow_the_most_likely_chain(table, method, processors):
    np.testing.assert_array_equal(generate_tokens(table, *processors, method=method), greedy_chains(table))


@pytest.mark.parametrize(
    "method, processors", [("greedy", ()), ("sample", ()), ("sample", (Temperature(2.0),))], ids=str
)
def test_after_the_end_of_a_row_there_is_only_padding(method, processors):
    out = generate_tokens(TABLE + 2 * np.eye(V)[EOS], *processors, method=method)
    assert np.any(out == EOS)
    for row in out:
        ends = np.flatnonzero(row == EOS)
        assert len(ends) <= 1
        end = ends[0] if len(ends) else MAX_NEW - 1
        assert np.all(row[: end + 1] != PAD) and np.all(row[end + 1 :] == PAD)


def test_the_loop_stops_when_every_row_has_ended():
    calls = []

    def counting_step(tokens, is_token, last):
        jax.debug.callback(lambda: calls.append(1))
        return markov_step(jnp.array(chain_table()), tokens, is_token, last)

    prompts = jnp.array([[1], [4]])  # 1 3 4 5 EOS; 4 5 EOS
    out = generate(
        jax.tree_util.Partial(counting_step),
        jnp.array([-1, -1]),
        Prompts(prompts, prompts != PAD),
        SamplingParams(KEYS[:2]),
        DecodeSpec(MAX_NEW, (EOS,), PAD, "greedy"),
    ).tokens
    jax.effects_barrier()
    np.testing.assert_array_equal(out, [[3, 4, 5, EOS] + 7 * [PAD], [5, EOS] + 9 * [PAD]])
    assert len(calls) == 4  # the prompt, then three tokens: the last one is chosen, but not read


def test_one_new_token_is_chosen_from_the_logits_of_the_prompt():
    np.testing.assert_array_equal(
        generate_tokens(TABLE, method="greedy", max_new_tokens=1), greedy_chains(TABLE)[:, :1]
    )


def test_sampling_is_a_function_of_the_keys():
    first, again = generate_tokens(ENDLESS), generate_tokens(ENDLESS)
    np.testing.assert_array_equal(first, again)
    others = generate_tokens(ENDLESS, keys=jax.random.split(jax.random.key(1), B))
    assert np.all(np.any(first != others, axis=1))


def test_equal_prompts_with_different_keys_get_different_tokens():
    out = generate_tokens(ENDLESS, prompts=np.repeat(PROMPTS[:1], B, axis=0))
    assert len(np.unique(out, axis=0)) == B


def test_a_row_does_not_depend_on_its_batch():
    together = generate_tokens(TABLE)
    for row in range(B):
        alone = generate_tokens(TABLE, prompts=PROMPTS[row : row + 1], keys=KEYS[row : row + 1])
        np.testing.assert_array_equal(alone[0], together[row])


def test_generating_in_two_calls_gives_the_same_tokens():
    in_one_call = generate_tokens(ENDLESS)
    first = generate_tokens(ENDLESS, max_new_tokens=5)
    prompts = np.concatenate([PROMPTS, first], axis=1)
    rest = generate_tokens(ENDLESS, prompts=prompts, first_index=5, max_new_tokens=MAX_NEW - 5)
    np.testing.assert_array_equal(np.concatenate([first, rest], axis=1), in_one_call)


def processed(logits, *processors):
    """Rows of logits after logits processors that ignore the text."""
    logits = jnp.array(logits, jnp.float32)
    tokens, lengths = jnp.zeros((len(logits), 1), jnp.int32), jnp.ones(len(logits), jnp.int32)
    return apply_processors(processors, logits, tokens, lengths, ((),) * len(processors))[0]


jitted_processed = jax.jit(processed)


def token_counts(logits, *processors, num=3001):
    """Counts of each token, sampled from one row of logits with many keys."""
    keys = jax.random.split(jax.random.key(7), num)
    tokens = jax.jit(METHODS["sample"])(jitted_processed(np.tile(logits, (num, 1)), *processors), keys)
    return np.bincount(tokens, minlength=V)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_sampled_frequencies_agree_with_the_softmax_at_the_temperature(temperature):
    logits = np.array([0.3, -1.0, 1.2, 0.0, 0.8, -0.5, 0.1])
    expected = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    counts = token_counts(logits, Temperature(temperature))
    chi_square = np.sum((counts - 3001 * expected) ** 2 / (3001 * expected))
    assert chi_square < 27.9  # exceeded once in ten thousand seeds, with 6 degrees of freedom


def test_processors_apply_in_their_order():
    logits = np.log(np.array([0.4, 0.25, 0.15, 0.1, 0.05, 0.03, 0.02]))
    assert np.flatnonzero(token_counts(logits, TopP(0.6))).tolist() == [0, 1]
    assert np.flatnonzero(token_counts(logits, Temperature(0.25), TopP(0.6))).tolist() == [0]
    assert np.flatnonzero(token_counts(logits, TopP(0.6), Temperature(0.25))).tolist() == [0, 1]
    assert np.flatnonzero(token_counts(logits, TopK(2), TopP(0.6))).tolist() == [0]
    assert np.flatnonzero(token_counts(logits, TopK(3))).tolist() == [0, 1, 2]


def support(logits):
    return np.asarray(logits) > RULED_OUT


def top_p(rows, p):
    """Top-p in one compiled program for every p; p = 1 is computed as TopP does."""
    return jitted_top_p(jnp.array(rows, jnp.float32), p)


jitted_top_p = jax.jit(lambda logits, p: keep_first(logits, -logits, p))


def most_likely_first(row):
    return sorted(range(V), key=lambda token: (-row[token], token))


@given(st.lists(rows_of_logits, min_size=2, max_size=2), st.floats(1e-3, 1.0))
@lightly
def test_top_p_keeps_exactly_the_smallest_set_of_that_probability(rows, p):
    kept = support(top_p(rows, p))
    for row, is_kept in zip(np.array(rows, np.float64), kept, strict=True):
        probability, expected, total = np.exp(row) / np.exp(row).sum(), [], 0.0
        for token in most_likely_first(row):
            assume(abs(total - p) > 1e-5)  # at the threshold float32 may round to either side
            if total >= p:
                break
            expected.append(token)
            total += probability[token]
        assert np.flatnonzero(is_kept).tolist() == sorted(expected)


@given(st.lists(rows_of_logits, min_size=2, max_size=2), st.integers(1, V + 2))
@lightly
def test_top_k_keeps_exactly_k_and_ties_go_to_the_smaller_ids(rows, k):
    logits = np.array(rows, np.float32)
    filtered = np.asarray(jitted_processed(logits, TopK(k)))
    for row, is_kept in zip(rows, support(filtered), strict=True):
        assert np.flatnonzero(is_kept).tolist() == sorted(most_likely_first(row)[:k])
    np.testing.assert_array_equal(filtered[support(filtered)], logits[support(filtered)])


def test_top_p_of_1_and_top_k_of_the_vocabulary_size_keep_everything():
    logits = np.linspace(-1, 1, V)
    np.testing.assert_array_equal(token_counts(logits, TopP(1.0)), token_counts(logits))
    np.testing.assert_array_equal(token_counts(logits, TopK(V)), token_counts(logits))
    assert np.all(token_counts(logits) > 0)


def test_temperature_divides_the_logits():
    np.testing.assert_array_equal(processed([[2.0, -3.0]], Temperature(0.5)), [[4.0, -6.0]])


def test_an_unknown_method_is_refused_with_the_list_of_methods():
    with pytest.raises(UserError, match="method='nonsense': unknown. Choose one of: sample, greedy"):
        generate_tokens(TABLE, method="nonsense")


@functools.cache
def gpt(positions):
    """A GPT: (config, full pass, step with a cache). Cached, because jit compares functions by identity."""
    config = TransformerConfig(
        vocab_size=23,
        max_len=19,
        num_layers=1,
        d_model=13,
        num_heads=6,
        num_kv_heads=2,
        head_dim=4,
        d_ff=17,
        positions=positions,
    )
    model = GPT(config)
    params = random_like(jax.eval_shape(model.init, KEYS[0], jnp.zeros((2, 3), int)))
    step = jax.tree_util.Partial(functools.partial(model.apply, method="extend", last_only=True), params)
    return config, jax.jit(functools.partial(model.apply, params)), step


def greedy_full_passes(full_pass, prompts):
    """Slow twin of cached decoding: a full pass over the text for every token; only the end of a row is padded."""
    texts = [[*prompt] for prompt in prompts]
    for _ in range(MAX_NEW):
        tokens = np.zeros((B, 19), int)
        for row, text in enumerate(texts):
            tokens[row, : len(text)] = text
        logits = full_pass(tokens)
        for row, text in enumerate(texts):
            text.append(int(np.argmax(logits[row, len(text) - 1])))
    return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_cached_greedy_decoding_equals_full_passes_over_each_prompt_alone(positions, side):
    config, full_pass, step = gpt(positions)
    prompts, T = [[5], [7, 1, 4], [3, 3, 8, 22, 9], [11, 2], [6, 19, 21]], 5
    tokens, is_token = np.full((B, T), PAD), np.zeros((B, T), bool)
    for row, prompt in enumerate(prompts):
        columns = slice(T - len(prompt), T) if side == "left" else slice(0, len(prompt))
        tokens[row, columns] = prompt
        is_token[row, columns] = True
    out = generate(
        step,
        make_cache(config, B, T + MAX_NEW - 1),
        Prompts(tokens, is_token),
        SamplingParams(KEYS),
        DecodeSpec(MAX_NEW, method="greedy"),
    ).tokens
    for row, expected in enumerate(greedy_full_passes(full_pass, prompts)):
        assert out[row].tolist() == expected, prompts[row]


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_rows_extended_by_given_tokens_continue_as_their_whole_texts_do(positions):
    config, _, step = gpt(positions)
    prompts = np.array([[5, 7, 0], [0, 3, 9], [1, 0, 4], [0, 0, 6], [2, 8, 3]])
    more = np.array([[0, 4], [7, 0], [2, 5], [0, 0], [6, 0]])  # one row gets nothing
    stop_at_6 = Custom(lambda x, _, lengths: jnp.where(lengths[:, None] >= 6, RULED_OUT, x))
    first = SamplingParams(KEYS, (stop_at_6,))
    spec = DecodeSpec(5, eos_ids=(EOS,), buffer_length=19)
    state = prefill(step, make_cache(config, B, 17), Prompts(prompts, prompts > 0), first, spec)
    state = decode(step, state, first, spec, 5)
    assert len({*state.generated.lengths.tolist()}) > 1 and np.any(state.is_done)
    texts = [
        text[:n] for text, n in zip(state.token_buffer, state.prompt_lengths + state.generated.lengths, strict=True)
    ]
    texts = [np.append(text, row[row > 0]) for text, row in zip(texts, more, strict=True)]
    whole, is_whole = np.zeros((B, 9), np.int32), np.arange(9) < np.array([[len(text)] for text in texts])
    whole[is_whole] = np.concatenate(texts)

    then = SamplingParams(jax.random.split(jax.random.key(7), B), (PresencePenalty(0.5),))
    found = extend(step, state, Prompts(more, more > 0), then, spec)
    expected = prefill(step, make_cache(config, B, 17), Prompts(whole, is_whole), then, spec)
    for _ in range(2):
        np.testing.assert_array_equal(found.generated.tokens, expected.generated.tokens)
        close(found.generated.log_probs, expected.generated.log_probs)
        np.testing.assert_array_equal(found.is_done, expected.is_done)
        found, expected = (decode(step, one, then, spec, 5) for one in (found, expected))
    assert len({*np.ravel(found.generated.tokens).tolist()}) > 4


def test_a_temperature_that_overflows_is_refused_and_the_smallest_is_greedy():
    with pytest.raises(UserError, match="temperature=1e-38"):
        Temperature(1e-38)
    logits = np.array([0.0, 1.0, 9.0, 2.0, 0.0, 0.0, 0.0], np.float32)
    assert set(token_counts(logits, Temperature(1e-6)).nonzero()[0]) == {2}

"""Decode loop: EOS ids, stop sequences, log-probabilities, processor states; and generation_config.json."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.markov import EOS, KEYS, MAX_NEW, PAD, PROMPTS, TABLE, B, V, markov_step

import transformer_jax as tj
from transformer_jax import sampling
from transformer_jax.errors import UserError
from transformer_jax.huggingface.files import PretrainedError
from transformer_jax.huggingface.generation_defaults import read_generation_defaults
from transformer_jax.sampling import (
    DecodeSpec,
    ForceLast,
    MinLength,
    PresencePenalty,
    Prompts,
    SamplingParams,
    Suppress,
    Temperature,
    TopK,
    TopP,
    generate,
)

FIXTURES = Path(__file__).parent / "fixtures"


def generated(*processors, table=TABLE, prompts=PROMPTS, first_index=0, states=None, **kwargs):
    step = jax.tree_util.Partial(markov_step, jnp.array(table))
    out = generate(
        step,
        np.full(B, -1, np.int32),
        Prompts(prompts, prompts != PAD, None, first_index, states),
        SamplingParams(KEYS, processors),
        DecodeSpec(**dict(max_new_tokens=MAX_NEW, eos_ids=(EOS,), pad_id=PAD) | kwargs),
    )
    return jax.tree.map(np.asarray, out)


def ended(tokens, is_end):
    """Slow twin of stop conditions: rows padded after the first n with `is_end(their first n tokens)`."""
    out = np.full_like(tokens, PAD)
    for row, endless in zip(out, tokens.tolist(), strict=True):
        n = next((n for n in range(1, len(endless) + 1) if is_end(endless[:n])), len(endless))
        row[:n] = endless[:n]
    return out


# Stop conditions


def test_each_of_several_eos_ids_ends_a_row():
    endless = generated(eos_ids=())
    assert np.all(endless.lengths == MAX_NEW)
    both = generated(eos_ids=(EOS, 5))
    np.testing.assert_array_equal(both.tokens, ended(endless.tokens, lambda new: new[-1] in (EOS, 5)))
    assert {row[n - 1] for row, n in zip(both.tokens.tolist(), both.lengths, strict=True)} >= {EOS, 5}


@pytest.mark.parametrize("sequences", [((3, 2),), ((4,), (5, 3)), ((3, 3, 2), (6, 6))], ids=str)
def test_a_stop_sequence_ends_a_row_when_it_is_complete(sequences):
    endless = generated(eos_ids=())
    stopped = generated(eos_ids=(), stop_sequences=sequences)
    expected = ended(endless.tokens, lambda new: any(tuple(new[-len(s) :]) == s for s in sequences))
    np.testing.assert_array_equal(stopped.tokens, expected)
    np.testing.assert_array_equal(stopped.lengths, np.sum(expected != PAD, axis=1))
    assert np.any(stopped.lengths < MAX_NEW)


def test_a_stop_sequence_may_begin_in_an_earlier_call_but_not_in_the_prompt():
    prompts = np.tile([[3, 1]], (B, 1))
    table = np.full((V, V), -9.0) + 18 * np.eye(V)[[0, 4, 4, 1, 5, 6, 6]]  # 1 -> 4 -> 5 -> 6 -> 6 ...
    kwargs = dict(table=table, eos_ids=(), method="greedy")
    assert generated(prompts=prompts, stop_sequences=((1, 4),), **kwargs).tokens[0, :4].tolist() == [4, 5, 6, 6]
    first = generated(prompts=prompts, max_new_tokens=1, **kwargs)
    both = np.concatenate([prompts, first.tokens], axis=1)
    rest = generated(prompts=both, first_index=1, stop_sequences=((4, 5),), **kwargs)
    assert np.all(rest.lengths == 1) and np.all(rest.tokens[:, 0] == 5)


def test_a_row_with_all_tokens_ruled_out_ends_and_the_others_continue():
    table = np.where(np.arange(V)[:, None] == 4, -np.inf, TABLE)  # no token may follow token 4
    out = generated(table=table, eos_ids=())
    expected = ended(generated(eos_ids=()).tokens, lambda new: new[-1] == 4)
    last = PROMPTS[np.arange(B), [2, 2, 2, 0, 1]]
    expected[last == 4] = PAD
    np.testing.assert_array_equal(out.tokens, expected)
    np.testing.assert_array_equal(out.lengths, np.sum(expected != PAD, axis=1))
    assert 0 in out.lengths and MAX_NEW in out.lengths


# Log-probabilities


def log_softmax(x):
    return x - np.log(np.sum(np.exp(x.astype(np.float64)), axis=-1, keepdims=True))


@pytest.mark.parametrize("processors", [(), (Temperature(0.3), TopK(3))], ids=["none", "some"])
def test_log_probabilities_are_those_of_the_model_before_any_processor(processors):
    out = generated(*processors, num_top=3)
    assert out.top_tokens.shape == (B, MAX_NEW, 3) and out.top_log_probs.shape == (B, MAX_NEW, 3)
    for row in range(B):
        token = [t for t in PROMPTS[row] if t != PAD][-1]
        for i in range(MAX_NEW):
            if i >= out.lengths[row]:
                assert out.log_probs[row, i] == 0 and np.all(out.top_tokens[row, i] == PAD)
                assert np.all(out.top_log_probs[row, i] == 0)
                continue
            log_probs = log_softmax(TABLE[token])
            best = np.argsort(-log_probs, kind="stable")[:3]
            token = out.tokens[row, i]
            np.testing.assert_allclose(out.log_probs[row, i], log_probs[token], rtol=1e-5)
            np.testing.assert_array_equal(out.top_tokens[row, i], best)
            np.testing.assert_allclose(out.top_log_probs[row, i], log_probs[best], rtol=1e-5)
    assert np.any(out.lengths < MAX_NEW)


# Processor states and compiled programs


def test_two_calls_with_handed_over_processor_states_equal_one_call():
    processors = (MinLength(7, (EOS,)), PresencePenalty(1.5), ForceLast(3))
    states = sampling.init_states(processors, jnp.array(PROMPTS), jnp.sum(jnp.array(PROMPTS) != PAD, axis=1), MAX_NEW)
    expected = generated(*processors)
    first = generated(*processors, states=states, max_new_tokens=5)
    prompts = np.concatenate([PROMPTS, first.tokens], axis=1)
    rest = generated(*processors, prompts=prompts, first_index=5, states=first.states, max_new_tokens=MAX_NEW - 5)
    np.testing.assert_array_equal(np.concatenate([first.tokens, rest.tokens], axis=1), expected.tokens)
    assert np.all(expected.tokens[expected.lengths == MAX_NEW, -1] == 3) and np.all(expected.lengths > 7)


def test_processors_share_a_compiled_program_whatever_their_numbers():
    traced = []

    def step(tokens, is_token, cache):
        traced.append(1)
        return markov_step(jnp.array(TABLE), tokens, is_token, cache)

    step = jax.tree_util.Partial(step)
    for processor, num in (
        (Temperature(0.5), 2),
        (Temperature(0.7), 2),
        (TopP(0.5), 4),
    ):  # a program traces the step twice: prefill and loop
        generate(
            step,
            jnp.full(B, -1),
            Prompts(PROMPTS, PROMPTS != PAD),
            SamplingParams(KEYS, (processor,)),
            DecodeSpec(3, (EOS,), PAD),
        )
        assert len(traced) == num


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0: must be at least 1."),
        ({"num_top": -1}, "num_top=-1: must be"),
        ({"eos_ids": (-1,)}, "eos_ids=(-1,): must be token ids"),
        ({"stop_sequences": ((3,), ())}, "stop_sequences=((3,), ())"),
    ],
)
def test_invalid_arguments_are_refused_in_one_line(kwargs, message):
    with pytest.raises(UserError) as error:
        generated(**kwargs)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


# generation_config.json


def test_generation_config_json_becomes_processors_in_the_reference_order():
    defaults = read_generation_defaults(
        {},
        {
            "eos_token_id": [7, 3],
            "pad_token_id": 5,
            "bos_token_id": 6,
            "renormalize_logits": True,
            "begin_suppress_tokens": [9],
            "suppress_tokens": [8, 99],
            "forced_eos_token_id": [3, 7],
            "forced_bos_token_id": 4,
            "min_new_tokens": 2,
            "min_length": 5,
            "bad_words_ids": [[7], [1, 2], [4], [1, 99]],
            "no_repeat_ngram_size": 3,
            "repetition_penalty": 1.3,
            "temperature": 0.1,
            "top_k": 50,
            "num_beams": 4,
        },
        11,
    )
    assert (defaults.eos_ids, defaults.pad_id, defaults.start_id) == ((7, 3), 5, 6)
    assert defaults.processors == (
        sampling.RepetitionPenalty(1.3),
        sampling.NoRepeatNgram(3),
        sampling.BadWords(((1, 2), (4,))),
        MinLength(5, (7, 3), True),
        MinLength(2, (7, 3)),
        sampling.ForceFirst(4),
        ForceLast(3),
        Suppress((8,)),
        sampling.SuppressFirst((9,), 1),
        sampling.Renormalize(),
    )
    neutral = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0, "bad_words_ids": None}
    assert read_generation_defaults({}, neutral, 11).processors == ()


@pytest.mark.parametrize(
    "name, value",
    [
        ("repetition_penalty", "1.2"),
        ("repetition_penalty", -1.0),
        ("repetition_penalty", float("nan")),
        ("no_repeat_ngram_size", 2.5),
        ("no_repeat_ngram_size", -2),
        ("min_length", 10**30),
        ("bad_words_ids", [[]]),
        ("bad_words_ids", [["a"]]),
        ("bad_words_ids", 3),
        ("suppress_tokens", [True]),
        ("renormalize_logits", 1),
    ],
)
def test_an_invalid_generation_config_json_is_refused_in_one_line(name, value):
    with pytest.raises(PretrainedError) as error:
        read_generation_defaults({}, {"eos_token_id": 7, name: value}, 11)
    assert str(error.value).startswith("generation_config.json: ") and "\n" not in str(error.value)


def with_processors(folder, *processors):
    run = tj.from_pretrained(FIXTURES / folder)
    return dataclasses.replace(
        run, generation_defaults=dataclasses.replace(run.generation_defaults, processors=processors)
    )


def test_a_text_longer_than_the_context_has_its_forced_last_token_once_at_the_end():
    run, seen = with_processors("gpt2", Suppress((7,)), ForceLast(7)), []
    run = dataclasses.replace(
        run,
        generation_defaults=dataclasses.replace(run.generation_defaults, eos_ids=()),
        tokenizer=Recording(run, seen),
    )
    num_new = run.config.max_len + 9
    tj.generate(run, "the cat", max_new_tokens=num_new, method="greedy", on_overflow="re-prefill")
    num_prompt = len(run.tokenizer.encode("the cat"))
    row = max(seen, key=len)
    assert len(row) == num_prompt + num_new
    assert row[-1] == 7 and 7 not in row[num_prompt:-1]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_translation_applies_the_processors_of_the_generation_defaults(num_beams):
    run, seen, allowed = tj.from_pretrained(FIXTURES / "marian"), [], {7, 11}
    others = tuple(set(range(run.config.decoder.vocab_size)) - allowed)
    run = with_processors("marian", Suppress(others))
    run = dataclasses.replace(run, tokenizer=Recording(run, seen))
    tj.translate(run, ["the cat sat", "this"], num_beams=num_beams, max_new_tokens=7)
    assert [len(row) for row in seen] == [7, 7] and {token for row in seen for token in row} <= allowed


class Recording:
    """Tokenizer that records the token sequences it decodes."""

    def __init__(self, run, seen):
        self.tokenizer, self.seen = run.tokenizer, seen

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def decode(self, tokens):
        self.seen.append(tokens.tolist())
        return self.tokenizer.decode(tokens)

"""Prefix of a run: prompt caching equals the text in full; a trained prefix takes part in every way of generating."""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.arrays import close, random_like

import transformer_jax as tj
from transformer_jax.config import TransformerConfig
from transformer_jax.models import GPT, parameter_shapes
from transformer_jax.run import Run
from transformer_jax.sampling import GenerationDefaults
from transformer_jax.tokenizers import train_tokenizer

pytestmark = pytest.mark.usefixtures("compilation_cache")
FIXTURES = Path(__file__).parent / "fixtures"
CONTEXT, P, V = 71, 19, 37
INSTRUCTIONS = np.random.default_rng(1).integers(0, V, P).tolist()
ROWS = [[5, 6, 7, 8, 9, 3, 2], [11], [30, 2, 2]]  # of several lengths: padded on the left
KINDS = {
    "learned": {},
    "rotary": {"positions": "rotary", "num_kv_heads": 1},
    "alibi": {"positions": "alibi"},
    "t5": {"positions": "t5"},
    "shaw": {"positions": "shaw"},
    "window": {"positions": "rotary", "window": 7},
    "linear": {"positions": "sinusoidal", "attention": "linear"},
}


@functools.cache
def make_run(kind="learned", vocab_size=V, seed=0, **changes):
    """A run with random parameters, without a tokenizer; of two layers for the kind that most tests take."""
    config = TransformerConfig(
        vocab_size=vocab_size,
        max_len=CONTEXT,
        num_layers=2 if kind == "rotary" else 1,
        d_model=12,
        num_heads=3,
        **KINDS[kind] | changes,
    )
    params = random_like(parameter_shapes(GPT(config)), seed)
    return Run(GPT(config), params, None, config, generation_defaults=GenerationDefaults((0,), 1, 2))


@functools.cache
def cached(kind="learned"):
    return tj.with_prefix(make_run(kind), INSTRUCTIONS)


def in_full(rows):
    return [INSTRUCTIONS + list(row) for row in rows]


def both(kind, **settings):
    """Completions after the cached prefix, and those of the prefix and the rows in one."""
    return (
        tj.generate_tokens(cached(kind), ROWS, **settings),
        tj.generate_tokens(make_run(kind), in_full(ROWS), **settings),
    )


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert (one.tokens, one.finish, one.num_drafted) == (other.tokens, other.finish, other.num_drafted)
        close(one.log_probs, other.log_probs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cached_prefix_has_the_tokens_of_the_text_in_full(kind):
    assert_same(*both(kind, max_new_tokens=11, temperature=1.3, repetition_penalty=1.4))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_after_a_prefix_are_those_of_the_text_in_full(kind):
    rows = np.random.default_rng(2).integers(0, V, (3, 6))
    is_token = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]], bool)
    full = np.concatenate([np.tile(INSTRUCTIONS, (3, 1)), rows], axis=1)
    full_is_token = np.concatenate([np.ones((3, P), bool), is_token], axis=1)
    expected = tj.logits(make_run(kind), full, full_is_token)[:, P:]
    close(tj.logits(cached(kind), rows, is_token)[is_token], expected[is_token])


SETTINGS = {
    "continuous": dict(batch_size=2, temperature=1.5),
    "beams": dict(method="beam", num_beams=3, num_samples=2, no_repeat_ngram_size=2),
    "lookup": dict(method="greedy", prompt_lookup=2),
    "int8": dict(method="greedy", cache_type="float32"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_so_have_other_ways_to_generate(name):
    found, expected = both("rotary", max_new_tokens=9, **SETTINGS[name])
    assert_same(found, expected)
    close([one.score or 0.0 for one in found], [one.score or 0.0 for one in expected])


@pytest.mark.parametrize("kind", ["window", "linear"])
def test_a_prefix_before_continuous_rows_and_endless_texts_of_a_window(kind):
    assert_same(*both(kind, max_new_tokens=5, batch_size=2, method="greedy"))
    if kind == "window":
        assert_same(*both(kind, max_new_tokens=CONTEXT, on_overflow="slide", method="greedy"))


def test_a_draft_model_reads_the_prefix_too(tmp_path):
    tj.save(make_run("rotary"), tmp_path / "draft")
    found, expected = both("rotary", max_new_tokens=9, method="greedy", draft=str(tmp_path / "draft"), num_draft=3)
    assert_same(found, expected)
    assert all(one.num_accepted == one.num_drafted for one in found)  # it is the model itself


def test_a_session_after_a_prefix_has_the_tokens_of_one_with_all_of_it():
    session, full = tj.Session(cached("rotary")), tj.Session(make_run("rotary"))
    full.extend(INSTRUCTIONS)
    for turn in ROWS:
        session.extend(turn)
        full.extend(turn)
        found, expected = (one.generate_tokens(max_new_tokens=5, temperature=1.2) for one in (session, full))
        assert_same([found], [expected])
    assert session.tokens == full.tokens[P:]


def test_a_prefix_after_a_prefix_is_one_prefix_and_none_removes_it():
    twice = tj.with_prefix(tj.with_prefix(make_run(), INSTRUCTIONS[:8]), np.array(INSTRUCTIONS[8:]))
    assert twice.prefix.tokens == cached().prefix.tokens
    close(tj.logits(twice, ROWS[:1]), tj.logits(cached(), ROWS[:1]))
    np.testing.assert_array_equal(tj.logits(tj.with_prefix(twice, None), ROWS[:1]), tj.logits(make_run(), ROWS[:1]))


def test_re_prefill_keeps_the_prefix():
    settings = dict(max_new_tokens=2 * CONTEXT, method="greedy", on_overflow="re-prefill")
    run = dataclasses.replace(cached(), generation_defaults=GenerationDefaults((), 1, 2))
    (found,) = tj.generate_tokens(run, [ROWS[0]], **settings)
    room = CONTEXT - P
    first = room - len(ROWS[0]) + 1  # new tokens before the context is full
    kept = (ROWS[0] + list(found.tokens[:first]))[-(room // 2) :]
    (expected,) = tj.generate_tokens(run, [kept], method="greedy", max_new_tokens=5)
    assert found.tokens[first : first + 5] == expected.tokens


def test_the_context_counts_the_prefix():
    room = CONTEXT - P
    with pytest.raises(tj.UserError, match=f"context is {room} after the prefix. Take at most {room}|Take at most"):
        tj.generate_tokens(cached(), [[3]], max_new_tokens=room)
    (found,) = tj.generate_tokens(cached(), [[3]], max_new_tokens=room - 1, min_new_tokens=room - 1)
    assert len(found.tokens) == room - 1
    with pytest.raises(tj.UserError, match=rf"tokens: {room + 1} in a row.*room for {room} after the prefix of {P}"):
        tj.logits(cached(), np.ones((1, room + 1), int))
    with pytest.raises(tj.UserError, match=f"{CONTEXT} tokens, and a prefix must leave room.*at most {CONTEXT - 1}"):
        tj.with_prefix(make_run(), [3] * CONTEXT)


@functools.cache
def text_run():
    tokenizer = train_tokenizer("byte", 283, "the cat")
    run = make_run("rotary", tokenizer.vocab_size)
    return dataclasses.replace(run, tokenizer=tokenizer)


def test_texts_after_a_text_and_their_scores():
    run = tj.with_prefix(text_run(), "Answer: ")
    settings = dict(max_new_tokens=7, seed=3)
    full = tj.generate(text_run(), "Answer: the cat", **settings)
    assert "Answer: " + tj.generate(run, "the cat", **settings) == full
    assert "Answer: the cat" + "".join(tj.stream(run, "the cat", **settings)) == full
    texts = ["the cat", "", "sat on a mat"]
    before = tj.score(text_run(), "Answer: ")
    for found, whole in zip(tj.score(run, texts), tj.score(text_run(), ["Answer: " + t for t in texts]), strict=True):
        close(found.log_probability, whole.log_probability - before.log_probability)
        assert found.num_tokens == whole.num_tokens - before.num_tokens


@pytest.mark.parametrize(
    "text, message",
    [("", "has no token"), ([], "no token"), (7, "must be a string"), ([V], "ids of"), ([0.5], "integers")],
)
def test_a_prefix_that_is_no_text_is_refused(text, message):
    run = text_run() if isinstance(text, str) else make_run()
    with pytest.raises(tj.UserError, match=message):
        tj.with_prefix(run, text)


def test_what_a_prefix_cannot_be_part_of_is_refused(tmp_path):
    run = tj.with_prefix(text_run(), "Answer: ")
    for save in (tj.save, tj.save_pretrained):
        with pytest.raises(tj.UserError, match=r"has a prefix.*tj.with_prefix\(run, None\)"):
            save(run, tmp_path / "new")
        assert not (tmp_path / "new").exists()
    with pytest.raises(tj.UserError, match="has a prefix"):
        tj.attention_maps(run, "the cat")
    with pytest.raises(tj.UserError, match="which was read without it. Load the adapter first"):
        tj.load_adapter(run, FIXTURES / "adapters" / "gpt2_dora")
    with pytest.raises(tj.UserError, match="a Seq2Seq takes no text as a prefix"):
        tj.with_prefix(tj.from_pretrained(FIXTURES / "t5"), "Answer: ")


# Trained prefixes


@pytest.mark.parametrize("case", ["gpt2_prefix", "gpt2_prompt", "llama_prompt"])
def test_greedy_texts_after_a_trained_prefix_are_those_of_peft(case):
    folder = FIXTURES / "adapters" / case
    run = tj.from_pretrained(FIXTURES / case.split("_")[0], adapter=folder)
    known = np.load(folder / "expected.npz")
    # Behind a soft prompt the reference counts the padding as positions, so that its rows depend on their batch.
    num_rows = 3 if case == "gpt2_prefix" else 1
    for batch_size in (32, 2):  # padded on the left; continuous
        settings = dict(method="greedy", max_new_tokens=10, batch_size=batch_size)
        found = tj.generate_tokens(run, known["prompt"], known["prompt_is_token"], **settings)
        for one, row in zip(found[:num_rows], known["greedy"][:num_rows, known["prompt"].shape[1] :], strict=True):
            assert list(one.tokens) == row[: len(one.tokens)].tolist()  # the reference does not stop at the end
    alone = [
        tj.generate_tokens(run, [one[mask]], **settings)[0]
        for one, mask in zip(known["prompt"], known["prompt_is_token"], strict=True)
    ]
    assert_same(found, alone)


def test_a_text_after_a_trained_prefix_has_its_logits():
    run = tj.from_pretrained(FIXTURES / "gpt2", adapter=FIXTURES / "adapters" / "gpt2_prompt")
    rows = np.random.default_rng(3).integers(0, 99, (2, 9))
    rows[:, :4] = rows[0, :4]
    after = tj.with_prefix(run, rows[0, :4])
    close(tj.logits(after, rows[:, 4:]), tj.logits(run, rows)[:, 4:])
    session = tj.Session(run)
    for turn in ([3, 4], [5]):
        session.extend(turn)
        tokens = list(session.tokens)
        found = session.generate_tokens(max_new_tokens=3, method="greedy")
        assert_same([found], tj.generate_tokens(run, [tokens], max_new_tokens=3, method="greedy"))


@pytest.mark.parametrize("case, base", [("bart_prefix", "adapter_bases/bart_square"), ("t5_prompt", "t5")])
@pytest.mark.parametrize("settings", [dict(method="greedy"), dict(method="beam", num_beams=3)], ids=str)
def test_an_encoder_decoder_generates_what_its_logits_say(case, base, settings):
    run = tj.from_pretrained(FIXTURES / base, adapter=FIXTURES / "adapters" / case)
    known = np.load(FIXTURES / "adapters" / case / "expected.npz")
    source, is_token = known["source"], known["source_is_token"]
    found = tj.generate_tokens(run, source, is_token, max_new_tokens=4, **settings)
    target = np.zeros((len(found), 4), int)  # causal: what follows the end changes nothing before it
    for row, one in zip(target, found, strict=True):
        row[: len(one.tokens)] = [run.generation_defaults.start_id, *one.tokens[:-1]]
    log_probs = np.asarray(jax.nn.log_softmax(tj.logits(run, source, is_token, target)))
    for row, one in zip(log_probs, found, strict=True):
        num = len(one.tokens)
        close(one.log_probs, row[np.arange(num), list(one.tokens)])
        if settings["method"] == "greedy":
            assert list(one.tokens) == np.argmax(row[:num], axis=-1).tolist()


def test_a_classifier_with_a_prompt_answers_by_its_logits():
    folder = FIXTURES / "adapters" / "bert_prompt"
    run = tj.from_pretrained(FIXTURES / "bert_classifier", adapter=folder)
    text = "the cat " * 99  # cut to what the context has room for beside the prompt
    ids = run.tokenizer.encode_whole(text)[: run.encoder_context]
    assert run.encoder_context == run.config.max_len - 4
    close(tj.classify(run, text).probabilities, jax.nn.softmax(tj.logits(run, ids[None]))[0])

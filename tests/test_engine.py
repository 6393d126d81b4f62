"""Generation with the engine: completions, streams, stop strings, the end of the context, compiled programs."""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.runs import CONTEXT, make_run

import transformer_jax as tj
from transformer_jax import sampling
from transformer_jax.errors import UserError
from transformer_jax.inference import engine, generate, prefill
from transformer_jax.inference.forward import step_function
from transformer_jax.sampling import GenerationDefaults

FIXTURES = Path(__file__).parent / "fixtures"


def texts_of(run, **settings):
    return [completion.text for completion in tj.complete(run, ["the cat", "狐"], tj.GenerationConfig(**settings))]


# Streams


@pytest.mark.parametrize("kind", ["byte", "bpe", "wordpiece"])
def test_the_pieces_of_a_stream_join_to_the_text_of_generate(kind):
    run, num_stopped, num_pieces = make_run(kind), 0, 0
    for seed in range(11):
        unstopped = ""
        for stop in ((), ("a", "\n"), ("th", "sä", "  "), ("\ufffd\ufffd\ufffd", "the cat")):
            settings = dict(
                max_new_tokens=43, seed=seed, stop=stop, temperature=0.7, logit_bias={101 + 3 * (kind == "byte"): 1.5}
            )
            whole = tj.generate(run, "the cat", **settings)
            pieces = list(tj.stream(run, "the cat", **settings))
            assert "the cat" + "".join(pieces) == whole
            assert all(pieces) and not any(end in "".join(pieces) for end in stop)
            unstopped = unstopped or whole
            num_stopped += whole != unstopped
            num_pieces += len(pieces)
    assert num_stopped > 7 and num_pieces > 43


def test_a_stream_never_ends_a_piece_within_a_character_or_a_stop_string():
    run = make_run("byte")
    for text, stop, expected in (
        ("aé€😀b", (), ["a", "é", "€", "😀", "b"]),
        ("abcabd", ("abd",), ["abc"]),
        ("xabab", ("abc",), ["x", "ab", "ab"]),
        ("x狐狐y", ("狐y",), ["x", "狐"]),
        ("aabc", ("ab", "bc"), ["a"]),
        ("ab\ufffdc", (), ["a", "b", "\ufffdc"]),
    ):
        pieces = list(generate.stream_pieces(engine_that_writes(run, text, stop), stop))
        assert pieces == expected, (text, stop)


def engine_that_writes(run, text, stop):
    """An engine that generates this text, one token in each call."""
    tokens = run.tokenizer.encode(text)
    forced = np.pad(tokens, (0, 11 - len(tokens)))  # of one length, so that all texts share a compiled program
    made = engine.Engine(
        run,
        [run.tokenizer.encode("the")],
        tj.GenerationConfig(method="greedy", max_new_tokens=len(tokens), stop=stop),
        sampling.SamplingParams(jax.random.split(jax.random.key(0), 1), (sampling.ForcedTokens(forced[None]),)),
    )
    advance = made.advance
    made.advance = lambda num: advance(1)
    return made


def test_a_stream_refuses_what_it_cannot_do_before_its_first_piece():
    for settings, words in (({"num_samples": 2}, "num_samples=2"), ({"method": "beam"}, "method='beam'")):
        with pytest.raises(UserError, match=words):
            tj.stream(make_run("byte"), "the", **settings)
    with pytest.raises(UserError, match="prompt=''"):
        tj.stream(make_run("byte"), "")


# Completions


def test_completions_have_the_log_probability_of_each_token_and_why_they_ended():
    run = make_run("byte")
    config = tj.GenerationConfig(max_new_tokens=11, num_samples=3, seed=6, logit_bias={run.tokenizer.eos_id: 2.5})
    completions = tj.complete(run, ["the cat", "狐"], config, num_top=2)
    rows = [np.append(run.tokenizer.encode(one.prompt), one.tokens) for one in completions]
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    logits_of_all = np.asarray(tj.logits(run, tokens))  # causal: the zeros at the end change nothing before them
    assert {completion.finish for completion in completions} == {"eos", "length"}
    for i, completion in enumerate(completions):
        assert completion.prompt == ["the cat", "狐"][i // 3]
        prompt = run.tokenizer.encode(completion.prompt)
        row = rows[i]
        logits = logits_of_all[i, len(prompt) - 1 : len(row) - 1]
        log_probs = logits - np.log(np.sum(np.exp(logits), axis=1, keepdims=True))
        expected = log_probs[np.arange(len(completion.tokens)), completion.tokens]
        np.testing.assert_allclose(completion.log_probs, expected, atol=1e-4)
        assert completion.log_prob == pytest.approx(sum(expected), abs=1e-3)
        for position, top in enumerate(completion.top):
            assert [token for token, _ in top] == np.argsort(-log_probs[position])[:2].tolist()
        is_eos = completion.tokens[-1] == run.tokenizer.eos_id
        assert completion.finish == ("eos" if is_eos else "length") and (is_eos or len(completion.tokens) == 11)
        assert run.tokenizer.decode(row) == completion.prompt + completion.text


def test_a_text_ends_before_its_first_stop_string_and_keeps_the_completing_token():
    run = make_run("byte")
    config = functools.partial(tj.GenerationConfig, max_new_tokens=43, min_new_tokens=43, seed=2)
    whole = tj.complete(run, ["the cat", "狐"], config())
    stop = whole[0].text[9:11]
    cut, other = tj.complete(run, ["the cat", "狐"], config(stop=(stop,)))
    assert cut.finish == "stop" and cut.text == whole[0].text[: whole[0].text.index(stop)]
    assert cut.tokens == whole[0].tokens[: len(cut.tokens)] and len(cut.tokens) < len(whole[0].tokens)
    assert stop in whole[1].text or other == whole[1]


@pytest.mark.parametrize("settings", [{"choices": ("yes", "no", "狐")}, {"regex": "(yes|no|狐)"}], ids=str)
@pytest.mark.parametrize("kind", ["byte", "bpe", "wordpiece"])
def test_a_constrained_text_is_one_of_those_allowed(kind, settings):
    texts = {text for seed in range(5) for text in texts_of(make_run(kind), max_new_tokens=13, seed=seed, **settings)}
    assert texts <= {"yes", "no", "狐"} and len(texts) > 1


def test_beam_search_finds_more_likely_texts_than_greedy_best_first():
    run = make_run("bpe")
    beam = tj.complete(
        run,
        ["the cat", "a"],
        tj.GenerationConfig(
            method="beam", num_beams=3, num_samples=2, max_new_tokens=7, min_new_tokens=7, length_penalty=0.0
        ),
    )
    greedy = tj.complete(
        run, ["the cat", "a"], tj.GenerationConfig(method="greedy", max_new_tokens=7, min_new_tokens=7)
    )
    for best, second, other in zip(beam[::2], beam[1::2], greedy, strict=True):
        assert best.log_prob >= second.log_prob and best.log_prob >= other.log_prob - 1e-4


# The context


def test_a_text_that_outgrows_the_context_is_refused_unless_re_prefill_is_allowed():
    run = make_run("byte")
    run = dataclasses.replace(run, generation_defaults=GenerationDefaults((), 0, 1))
    longest = tj.complete(run, ["the cat", "a"], tj.GenerationConfig(max_new_tokens=CONTEXT - 7))
    assert [len(completion.tokens) for completion in longest] == [CONTEXT - 7] * 2
    with pytest.raises(UserError) as error:
        tj.generate(run, ["the cat", "a"], max_new_tokens=CONTEXT - 6)
    for words in (f"max_new_tokens={CONTEXT - 6}", "7 tokens", f"context of {CONTEXT}", f"at most {CONTEXT - 7}"):
        assert words in str(error.value)
    long = tj.GenerationConfig(max_new_tokens=2 * CONTEXT + 11, on_overflow="re-prefill", seed=1)
    completions = tj.complete(run, ["the cat", "a"], long, seeds=[1, 3])
    assert [len(completion.tokens) for completion in completions] == [2 * CONTEXT + 11] * 2
    pieces = tj.stream(run, "the cat", **long.to_dict())
    assert "".join(pieces) == completions[0].text


def test_a_prompt_with_its_own_seed_has_the_same_text_alone_and_in_a_batch():
    run, prompts, seeds = make_run("byte"), ["the cat", "a", "the cat"], [7, 11, 13]
    together = tj.complete(run, prompts, tj.GenerationConfig(max_new_tokens=17, num_samples=2), seeds=seeds)
    alone = [
        tj.complete(run, [prompt], tj.GenerationConfig(max_new_tokens=17, num_samples=2, seed=seed))
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    assert [completion.tokens for completion in together] == [completion.tokens for two in alone for completion in two]
    assert len({completion.tokens for completion in together}) > 4
    with pytest.raises(UserError, match="seeds: 1 of them, and 3 prompts"):
        tj.complete(run, prompts, tj.GenerationConfig(), seeds=[3])


# Programs


def test_ten_prompt_lengths_compile_two_prefill_programs_and_one_decode_loop(monkeypatch):
    run, traced = make_run("byte"), []
    step = step_function(run)

    def counting(params, tokens, is_token, cache):
        traced.append(tokens.shape[1])
        return step.func(params, tokens, is_token, cache)

    monkeypatch.setattr(engine, "step_function", lambda run: jax.tree_util.Partial(counting, *step.args))
    lengths, numbers = (1, 5, 17, 29, 32, 33, 41, 53, 61, 64), (32, 29, 3, 11, 5, 7, 23, 2, 13, 31)
    for length, num_new in zip(lengths, numbers, strict=True):
        tj.generate(run, ("the cat " * 8)[:length], max_new_tokens=num_new)
    assert sorted(set(traced)) == [1, 32, 64] and len(traced) == 3


def test_results_do_not_depend_on_the_bucket(monkeypatch):
    run = make_run("byte")
    settings = dict(max_new_tokens=19, seed=3)
    usual = tj.generate(run, ["the cat sat", "a"], **settings)
    monkeypatch.setattr(prefill, "bucket", lambda size, max_size, smallest=0: size)
    assert tj.generate(run, ["the cat sat", "a"], **settings) == usual
